#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "storage/load/shared_memory.h"

namespace shardwright {

/// Where ranks of a node tell each other a few bytes: what a collective over sockets does in milliseconds, as
/// each rank has to be woken for each message, takes one wake-up each. All ranks call gather() equally often;
/// one thread at a time.
class NodeBoard {
 public:
  /// What the memory must have room for. `bytes`: the most that a rank tells.
  static std::size_t bytes_of(std::size_t ranks, std::size_t bytes);

  /// In memory that was all zeros when the first rank came. REQUIRES: bytes_of(ranks, bytes) bytes of it.
  NodeBoard(SharedMemory memory, std::size_t ranks, std::size_t rank, std::size_t bytes);

  /// What all ranks tell, in their order; as many bytes on each. Throws Error(io) if a rank has ended, or has
  /// not come after so long; Error(argument) for more bytes than there is room for.
  std::vector<std::string> gather(const std::string& mine, std::chrono::milliseconds timeout);

 private:
  struct Head;
  struct Place;
  Head& head() const;
  Place& place(std::size_t rank) const;
  char* text(std::size_t rank) const;

  SharedMemory memory_;
  std::size_t ranks_;
  std::size_t rank_;
  std::size_t bytes_;
  std::uint64_t turn_ = 0;
};

}  // namespace shardwright
