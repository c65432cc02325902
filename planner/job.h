#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace shardwright {

/// The ranks that load, save or export together: each of them calls the same functions in the same order.
/// A Job as it is made here is one process alone. job_over() makes one over c10d.
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

/// The way of bytes from one rank to another. What is sent to a rank arrives there in the order in which it
/// was sent; both sides know how many bytes come. Whoever has another way (CUDA IPC, NIXL) fills these in.
/// Ranks of one node that share memory have no use for it.
///
/// Called from three threads at a time, of which one sends and one receives; sends may come from several, one
/// at a time. The third does either once the others have ended to.
struct Transport {
  /// Begins to send. The memory must not change until wait() of what is returned.
  std::function<std::uint64_t(int rank, const std::byte* data, std::size_t bytes)> send;

  /// Begins to receive; the memory is nobody else's until wait() of what is returned.
  std::function<std::uint64_t(int rank, std::byte* data, std::size_t bytes)> receive;

  /// Waits until it is done. Throws Error(io) if the other rank cannot be reached.
  std::function<void(std::uint64_t begun)> wait;

  /// A board that all ranks see: puts a text there, and finds one, if it has been put. Called by a thread
  /// that waits, some times a second. Null: no rank can end a hand-over before all of it has gone.
  std::function<void(const std::string& key, const std::string& text)> post = {};
  std::function<std::optional<std::string>(const std::string& key)> look = {};
};

}  // namespace shardwright
