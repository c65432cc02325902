#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace shardwright {

/// The ranks that load, save or export together: each of them calls the same functions in the same order.
/// A Job as it is made here is one process alone. planner/torch/exchange.h makes one over c10d.
struct Job {
  /// Turns the bytes of all ranks, in their order, into an answer for each.
  using Answers = std::function<std::vector<std::string>(std::vector<std::string>)>;

  int rank = 0;   ///< of this process; from 0
  int ranks = 1;  ///< how many there are

  /// One round over all ranks, which each of them calls: gives rank 0 the bytes of `mine`, and returns what
  /// `answers`, called on rank 0 alone, has for this rank. Where one of the two throws, all ranks throw an
  /// Error that names the ranks concerned and what each has said. Null where `ranks` is 1.
  std::function<std::string(const std::function<std::string()>& mine, const Answers& answers)> round;

  /// What a round may be spared by: what `mine`, of so many bytes, is on all ranks, in their order. Where it
  /// throws on some, all ranks throw as of a round. Null: there is nothing quicker than a round.
  std::function<std::vector<std::string>(std::size_t bytes, const std::function<std::string()>& mine)>
      gather = {};
};

/// Calls job.round. A process alone gives its bytes to itself. Throws Error(argument) for a job of several
/// ranks without a round.
std::string round_of(const Job& job, const std::function<std::string()>& mine, const Job::Answers& answers);

/// Runs `work` on every rank. Returns once it has succeeded on all of them. Throws the same Error on all
/// ranks if it has thrown on one; its `partly_written` names what this rank leaves so.
void on_all_ranks(const Job& job, const std::function<void()>& work);

}  // namespace shardwright
