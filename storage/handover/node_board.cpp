#include "storage/handover/node_board.h"

#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "planner/error.h"
#include "storage/load/shared_events.h"
#include "storage/memory_units.h"
#include "storage/nap.h"
#include "storage/rounded_up.h"
#include "storage/seconds.h"

namespace shardwright {
struct NodeBoard::Head {
  SharedEvents told;
};

/// Behind it are the bytes of two turns: who tells the next one may be ahead of who still reads.
struct alignas(cache_line) NodeBoard::Place {
  std::atomic<std::uint64_t> turn;
  NodeMember member;
};

std::size_t NodeBoard::bytes_of(std::size_t ranks, std::size_t bytes) {
  return sizeof(Head) + ranks * (sizeof(Place) + 2 * rounded_up(bytes, cache_line));
}

NodeBoard::NodeBoard(SharedMemory memory, std::size_t ranks, std::size_t rank, std::size_t bytes)
    : memory_(std::move(memory)), ranks_(ranks), rank_(rank), bytes_(bytes) {
  if (memory_.size() < bytes_of(ranks, bytes) || rank >= ranks)
    throw std::logic_error("NodeBoard: too little memory, or a rank that is none");
  place(rank).member.join();
}

NodeBoard::Head& NodeBoard::head() const { return *reinterpret_cast<Head*>(memory_.data()); }

NodeBoard::Place& NodeBoard::place(std::size_t rank) const {
  return *reinterpret_cast<Place*>(memory_.data() + sizeof(Head) +
                                   rank * (sizeof(Place) + 2 * rounded_up(bytes_, cache_line)));
}

char* NodeBoard::text(std::size_t rank) const {
  return reinterpret_cast<char*>(&place(rank) + 1) + turn_ % 2 * rounded_up(bytes_, cache_line);
}

std::vector<std::string> NodeBoard::gather(const std::string& mine, std::chrono::milliseconds timeout) {
  if (mine.size() > bytes_)
    throw Error(ErrorKind::argument, "a board for " + std::to_string(bytes_) + " bytes a rank cannot take " +
                                         std::to_string(mine.size()));
  ++turn_;
  std::memcpy(text(rank_), mine.data(), mine.size());
  place(rank_).turn.store(turn_);
  SharedEvents& events = head().told;
  // The last one wakes the others: each is woken once. Of two that are last at a time one sees the other, as
  // these are sequentially consistent.
  const auto missing = [&] {
    std::size_t rank = 0;
    while (rank < ranks_ && place(rank).turn.load() >= turn_) ++rank;
    return rank;
  };
  const Clock::time_point begin = Clock::now();
  if (missing() == ranks_) events.happened();
  for (std::uint32_t seen = events.number.load(); missing() < ranks_; seen = events.number.load()) {
    events.wait(seen, nap);
    const std::size_t rank = missing();
    if (rank == ranks_ || events.number.load() != seen) continue;
    if (place(rank).member.is_gone())
      throw Error(ErrorKind::io, "rank " + std::to_string(rank) + " has ended; connection lost", ECONNRESET);
    if (Clock::now() - begin > timeout)
      throw Error(ErrorKind::io,
                  "rank " + std::to_string(rank) + " has not come for " +
                      std::to_string(timeout.count() / 1000) + " s; timed out",
                  ETIMEDOUT);
  }
  std::vector<std::string> told;
  for (std::size_t rank = 0; rank < ranks_; ++rank) told.emplace_back(text(rank), mine.size());
  return told;
}

}  // namespace shardwright
