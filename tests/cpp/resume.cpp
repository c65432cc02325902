/// Two ranks save rows; two ranks resume columns, and one resumes all. `resume DIRECTORY` resumes what is
/// there.

#include "ranks.h"
#include "training.h"

namespace {

void resume_rank(const shardwright::Job& job, const std::filesystem::path& path) {
  const Training training = Training::of_rank(job.rank, job.ranks, 1, false);
  // README: resume
  const shardwright::LoadReport report = shardwright::resume_checkpoint(training.specs, path, job);
  shardwright::mark_written({training.matrix, training.vector, training.step});
  // README: end
  expect(training.equals(Training::of_rank(job.rank, job.ranks, 1, true)),
         "every element is as it was saved");
  expect(report.not_loaded.empty() && report.rounded.empty(), "all of it, and nothing rounded");
}

/// A file that lacks its end is found by every rank before anything is written.
void find_damage(const shardwright::Job& job, const std::filesystem::path& path) {
  const Training training = Training::of_rank(job.rank, job.ranks, 1, false);
  try {
    shardwright::resume_checkpoint(training.specs, path, job);
  } catch (const shardwright::Error& error) {
    expect(error.kind == shardwright::ErrorKind::malformed, error.what());
    expect(training.equals(Training::of_rank(job.rank, job.ranks, 1, false)), "the tensors are untouched");
    return;
  }
  expect(false, "a file that is cut short is no checkpoint");
}

}  // namespace

int main(int count, char** arguments) {
  const std::filesystem::path folder = count > 1 ? arguments[1] : new_folder();
  if (count == 1) {
    on_ranks(2, [&](const shardwright::Job& job) {
      shardwright::save_checkpoint(Training::of_rank(job.rank, job.ranks, 0, true).specs, folder, job);
    });
  }
  on_ranks(2, [&](const shardwright::Job& job) { resume_rank(job, folder); });
  on_ranks(1, [&](const shardwright::Job& job) { resume_rank(job, folder); });
  resume_rank({}, folder);  // a process alone needs no store
  if (count > 1) return 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() == ".distcp")
      std::filesystem::resize_file(entry.path(), entry.file_size() - 1);
  }
  on_ranks(2, [&](const shardwright::Job& job) { find_damage(job, folder); });
  std::filesystem::remove_all(folder);
  return 0;
}
