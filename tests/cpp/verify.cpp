/// A checkpoint is verified; then a byte of it is changed, and verifying says whose it was.

#include <fstream>

#include "ranks.h"
#include "training.h"

int main() {
  const std::filesystem::path folder = new_folder();
  const std::filesystem::path path = folder / "checkpoint";
  on_ranks(2, [&](const shardwright::Job& job) {
    shardwright::save_checkpoint(Training::of_rank(job.rank, job.ranks, 0, true).specs, path, job);
  });

  // README: verify
  const shardwright::VerifyReport report = shardwright::verify_checkpoint(path);
  for (const std::string& problem : report.problems) std::cerr << problem << "\n";
  // README: end
  expect(report.kind == "sharded" && report.problems.empty(), "it is whole");
  expect(report.tensors == 3 && report.bytes_hashed > 48 * 4, "all three tensors have been looked at");

  for (const auto& entry : std::filesystem::directory_iterator(path)) {
    if (!entry.path().filename().string().starts_with("rank-00001")) continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    std::string bytes(entry.file_size(), '\0');
    file.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    const at::Tensor rows = Training::of_rank(1, 2, 0, true).matrix;
    const std::size_t at =
        bytes.find(std::string(static_cast<const char*>(rows.const_data_ptr()), rows.nbytes()));
    expect(at != std::string::npos, "the rank's rows are in its file");
    file.seekp(static_cast<std::streamoff>(at + 5));
    file.put(static_cast<char>(bytes[at + 5] ^ 1));
  }
  const shardwright::VerifyReport damaged = shardwright::verify_checkpoint(path);
  expect(damaged.damaged == std::vector<std::string>{"model.weight"}, "the tensor that was changed is named");
  expect(damaged.problems.size() == 1, "and nothing else is");
  std::filesystem::remove_all(folder);
  return 0;
}
