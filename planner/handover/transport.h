#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace shardwright {

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
