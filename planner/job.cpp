#include "planner/job.h"

#include <utility>

#include "planner/error.h"

namespace shardwright {

std::string round_of(const Job& job, const std::function<std::string()>& mine, const Job::Answers& answers) {
  if (job.round) return job.round(mine, answers);
  if (job.ranks != 1) {
    throw Error(ErrorKind::argument,
                "a job of " + std::to_string(job.ranks) +
                    " ranks: expected a round that reaches all of them, found none; make "
                    "the job with job_over()");
  }
  std::vector<std::string> all;
  all.push_back(mine());
  return answers(std::move(all)).at(0);
}

void on_all_ranks(const Job& job, const std::function<void()>& work) {
  std::vector<std::string> partly_written;
  try {
    round_of(
        job,
        [&] {
          try {
            work();
          } catch (const Error& error) {
            partly_written = error.partly_written;
            throw;
          }
          return std::string();
        },
        [](const std::vector<std::string>& all) { return std::vector<std::string>(all.size()); });
  } catch (Error& error) {
    error.partly_written = std::move(partly_written);
    throw;
  }
}

}  // namespace shardwright
