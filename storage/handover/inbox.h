#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "storage/handover/inbox_places.h"
#include "storage/load/shared_memory.h"

namespace shardwright {

// The inbox of a rank, as it sees it and as those see it that send to it. What others have written into it is
// checked. Hand-overs are numbered from 1 on, by all ranks alike, so that nothing of one is taken for
// another.

/// How long a rank waits where nothing happens; see RefitOptions::timeout.
struct InboxWaiting {
  std::chrono::milliseconds timeout{};
  std::function<bool()> is_stopped = {};  ///< ends waiting; may be null
};

/// This rank's. Thread-safe but for begin().
class Inbox {
 public:
  /// Makes it. Throws Error(io) where the system refuses shared memory.
  explicit Inbox(InboxPlaces places);

  const InboxPlaces& places() const { return places_; }
  std::string path() const { return memory_.path(); }
  void forget_path() { memory_.forget_path(); }  ///< once all that send to it have opened it
  std::size_t size() const { return memory_.size(); }

  /// A hand-over begins: none of its messages has come.
  void begin() { ++turn_; }

  /// The messages of the layers up to this one may come.
  void open(std::uint32_t layer);

  /// Null: it comes by another way.
  const std::byte* message(std::size_t stream, std::size_t number) const;

  /// Waits for a message that has a place. Throws Error(io) if the rank that sends it has ended, or nothing
  /// comes of it for too long.
  void wait_for(std::size_t stream, std::size_t number, const InboxWaiting& waiting);

 private:
  InboxPlaces places_;
  SharedMemory memory_;
  std::byte* first_ = nullptr;  ///< of what the places are counted from
  std::uint64_t turn_ = 0;
};

/// Another rank's. Thread-safe but for begin().
class Outbox {
 public:
  /// `messages` are what this rank sends there. Throws Error(io) if it cannot be opened, Error(malformed) if
  /// it is none for these.
  Outbox(int receiver, const std::string& path, std::size_t size, int rank,
         const std::vector<Message>& messages, std::size_t layers);

  void begin() { ++turn_; }

  /// Where a message is made; null: it goes by another way.
  std::byte* message(std::size_t number) const;

  /// Waits until messages of a layer may be made. False if that was stopped. Throws Error(io) as
  /// Inbox::wait_for().
  bool wait_for(std::uint32_t layer, const InboxWaiting& waiting);

  /// All messages up to this one, of those that have a place, are there.
  void send(std::size_t number);

 private:
  int receiver_;
  std::size_t layers_;
  SharedMemory memory_;
  std::size_t stream_ = 0;
  std::vector<std::byte*> messages_;
  std::uint64_t turn_ = 0;
};

}  // namespace shardwright
