/// Two ranks save a training state, each its part, and find their bytes in the files. A rank that cannot is
/// heard of by all, and the checkpoint that was there stays. `save DIRECTORY` leaves the checkpoints there.

#include <fstream>
#include <iterator>

#include "ranks.h"
#include "training.h"

namespace {

/// All bytes of the files whose names begin so.
std::string bytes_of_files(const std::filesystem::path& directory, const std::string& start) {
  std::string bytes;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    if (!entry.path().filename().string().starts_with(start)) continue;
    std::ifstream file(entry.path(), std::ios::binary);
    bytes.append(std::istreambuf_iterator<char>(file), {});
  }
  return bytes;
}

bool contains(const std::string& bytes, const at::Tensor& tensor) {
  return bytes.find(std::string(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes())) !=
         std::string::npos;
}

void save_rank(const shardwright::Job& job, const std::filesystem::path& path) {
  const Training training = Training::of_rank(job.rank, job.ranks, 0, true);
  // README: save
  const shardwright::SaveReport report = shardwright::save_checkpoint(training.specs, path, job);
  // README: end
  expect(report.files <= 1, "a rank writes one file");
  expect(contains(bytes_of_files(path, "rank-0000" + std::to_string(job.rank)), training.matrix),
         "the rank's file holds its rows");
  expect(contains(bytes_of_files(path, "rank-"), training.vector), "one rank has written what both have");
}

void fail_on_rank_1(const shardwright::Job& job, const std::filesystem::path& path) {
  Training training = Training::of_rank(job.rank, job.ranks, 0, true);
  if (job.rank == 1) training.specs[1].device = shardwright::DeviceKind::meta;
  try {
    shardwright::save_checkpoint(training.specs, path, job);
  } catch (const shardwright::Error& error) {
    const std::string text = error.what();
    expect(error.kind == shardwright::ErrorKind::mismatch, "a tensor without memory is a mismatch: " + text);
    expect(text.find("rank 1") != std::string::npos && text.find("model.scale") != std::string::npos,
           "the error names rank and tensor: " + text);
    return;
  }
  expect(false, "no rank goes on where one cannot");
}

/// What differs is found in planning, when the folder for the files is there already.
void differ_on_rank_1(const shardwright::Job& job, const std::filesystem::path& path) {
  Training training = Training::of_rank(job.rank, job.ranks, 0, true);
  if (job.rank == 1) training.specs[1] = shardwright::describe("model.scale", training.vector.slice(0, 0, 4));
  try {
    shardwright::save_checkpoint(training.specs, path, job);
  } catch (const shardwright::Error& error) {
    const std::string text = error.what();
    expect(text.find("model.scale") != std::string::npos && text.find("rank 1") != std::string::npos,
           "the error names rank and tensor: " + text);
    return;
  }
  expect(false, "ranks that differ are told so");
}

}  // namespace

int main(int count, char** arguments) {
  const std::filesystem::path folder = count > 1 ? arguments[1] : new_folder();
  const std::filesystem::path path = folder / "step-00000007";
  on_ranks(2, [&](const shardwright::Job& job) { save_rank(job, path); });
  const std::string before = bytes_of_files(path, "");
  on_ranks(2, [&](const shardwright::Job& job) { fail_on_rank_1(job, path); });
  on_ranks(2, [&](const shardwright::Job& job) { differ_on_rank_1(job, path); });
  expect(bytes_of_files(path, "") == before, "the checkpoint that was there stays as it is");
  expect(shardwright::latest_checkpoint(folder) == path, "it is the one to resume");
  expect(shardwright::verify_checkpoint(path).problems.empty(), "verifying finds nothing wrong");
  for (const auto& entry : std::filesystem::directory_iterator(path))
    expect(entry.path().filename() == ".metadata" || !entry.path().filename().string().starts_with("."),
           "nothing hidden but torch's metadata is left behind");
  // One rank alone, with a matrix whose columns lie far apart in memory.
  Training alone = Training::of_rank(0, 1, 0, true);
  const at::Tensor turned = alone.matrix.t().contiguous().t();
  alone.specs[0] = shardwright::describe("model.weight", turned);
  shardwright::save_checkpoint(alone.specs, folder / "alone");
  expect(contains(bytes_of_files(folder / "alone", "rank-00000-00000"), alone.matrix),
         "rows are stored as rows");
  if (count == 1) std::filesystem::remove_all(folder);
  return 0;
}
