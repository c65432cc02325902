#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <mutex>

#include "planner/handover/refit_plan.h"

namespace shardwright {

// Memory of the messages of a hand-over, which is used by several threads at a time.

/// Behind the boxes of each message: whether they are what they should be.
inline constexpr std::size_t footer_bytes = alignment_in_message;
inline constexpr std::uint64_t is_whole = 0x57484f4c45;
inline constexpr std::uint64_t is_void = 0x564f4944;

inline std::size_t size_with_footer(const Message& message) { return message.bytes + footer_bytes; }

struct MessageBytes {
  std::unique_ptr<std::byte[]> data;
  std::size_t room = 0;

  std::byte* get() const { return data.get(); }
  explicit operator bool() const { return data != nullptr; }
};

/// Memory of both directions, all that is on the way, and some that waits to be used again: fresh pages cost
/// more than what is copied into them.
class MessageMemory {
 public:
  explicit MessageMemory(std::size_t most_kept) : most_kept_(most_kept) {}

  MessageBytes take(std::size_t bytes);

  /// `bytes` as they were taken.
  void give_back(MessageBytes memory, std::size_t bytes);

  std::size_t most() const { return most_; }

 private:
  void drop_largest();

  const std::size_t most_kept_;
  std::mutex mutex_;
  std::multimap<std::size_t, MessageBytes> free_;
  std::size_t held_ = 0;
  std::size_t kept_ = 0;
  std::size_t most_ = 0;
};

/// What a rank hands to itself.
class OwnMessages {
 public:
  void put(MessageBytes message, std::size_t bytes);

  /// Null once nothing more comes.
  MessageBytes take(std::size_t bytes);

  /// Waits until less than so many bytes are left in it. False if nobody takes any more.
  bool wait_for_less(std::size_t bytes);

  /// Nobody puts, or nobody takes any more: what is put from here on is dropped.
  void close();

  std::size_t waiting();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<MessageBytes> messages_;
  std::size_t waiting_ = 0;
  bool is_closed_ = false;
};

/// The first thing that went wrong.
class FirstFailure {
 public:
  /// Of a rank that cannot begin what the others wait for: it ends the hand-over on all of them.
  void note_end(std::exception_ptr what) {
    note(std::move(what));
    is_end_ = true;
  }
  bool is_end() const { return is_end_; }

  void note(std::exception_ptr what) {
    const std::scoped_lock lock(mutex_);
    if (!first_) first_ = std::move(what);
  }
  std::exception_ptr first() {
    const std::scoped_lock lock(mutex_);
    return first_;
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
  std::atomic<bool> is_end_ = false;
};

/// How many messages have been begun with each rank, in one direction.
class BegunMessages {
 public:
  /// Calls `begin` and counts it, unless stop() has been called: then it returns false. What `begin` throws
  /// does not count.
  template <typename Begin>
  bool count(int rank, const Begin& begin) {
    const std::scoped_lock lock(mutex_);
    if (is_stopped_) return false;
    begin();
    ++counts_[rank];
    return true;
  }

  /// From here on none is begun.
  std::map<int, std::size_t> stop() {
    const std::scoped_lock lock(mutex_);
    is_stopped_ = true;
    return counts_;
  }

  bool is_stopped() {
    const std::scoped_lock lock(mutex_);
    return is_stopped_;
  }

 private:
  std::mutex mutex_;
  std::map<int, std::size_t> counts_;
  bool is_stopped_ = false;
};

}  // namespace shardwright
