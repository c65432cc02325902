#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "planner/error.h"
#include "planner/job.h"

namespace shardwright {

/// The ranks of a job as threads of this process: what Job::round says, in the plainest way.
class ThreadsAsRanks {
 public:
  explicit ThreadsAsRanks(int ranks) : ranks_(ranks), told_(static_cast<std::size_t>(ranks)) {}

  /// Runs the work on every rank, and returns what each has thrown.
  std::vector<std::optional<Error>> run(const std::function<void(const Job&)>& work) {
    std::vector<std::optional<Error>> errors(static_cast<std::size_t>(ranks_));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < ranks_; ++rank) {
      threads.emplace_back([&, rank] {
        try {
          work(Job{rank, ranks_, [this, rank](const auto& mine, const auto& answers) {
                     return round(rank, mine, answers);
                   }});
        } catch (const Error& error) {
          errors[static_cast<std::size_t>(rank)] = error;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return errors;
  }

 private:
  struct Told {
    std::string bytes;
    std::optional<Error> error;
  };

  std::string round(int rank, const std::function<std::string()>& mine, const Job::Answers& answers) {
    Told told;
    try {
      told.bytes = mine();
    } catch (const Error& error) {
      told.error =
          Error(error.kind, "rank " + std::to_string(rank) + ": " + error.what(), error.system_error);
    }
    std::unique_lock lock(mutex_);
    told_[static_cast<std::size_t>(rank)] = std::move(told);
    if (rank != 0) {
      ++come_;
      changed_.notify_all();
      const int mine_is = number_;
      changed_.wait(lock, [&] { return number_ != mine_is; });
    } else {
      changed_.wait(lock, [&] { return come_ == ranks_ - 1; });
      come_ = 0;
      failure_.reset();
      std::vector<std::string> all;
      for (Told& one : told_) {
        if (one.error && !failure_) failure_ = one.error;
        all.push_back(std::move(one.bytes));
      }
      if (!failure_) {
        try {
          answers_ = answers(std::move(all));
        } catch (const Error& error) {
          failure_ = error;
        }
      }
      ++number_;
      changed_.notify_all();
    }
    if (failure_) throw Error(*failure_);
    return answers_.at(static_cast<std::size_t>(rank));
  }

  const int ranks_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<Told> told_;
  std::vector<std::string> answers_;
  std::optional<Error> failure_;
  int come_ = 0;
  int number_ = 0;  // of the round
};

}  // namespace shardwright
