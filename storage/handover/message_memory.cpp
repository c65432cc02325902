#include "storage/handover/message_memory.h"

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <new>
#include <string>
#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

MessageBytes allocated(std::size_t bytes) {
  try {
    return {std::make_unique_for_overwrite<std::byte[]>(bytes), bytes};
  } catch (const std::bad_alloc&) {
    throw Error(ErrorKind::io,
                "cannot take " + std::to_string(bytes) +
                    " bytes for a message of a hand-over; pass a smaller staging_bytes",
                ENOMEM);
  }
}

}  // namespace

MessageBytes MessageMemory::take(std::size_t bytes) {
  const std::scoped_lock lock(mutex_);
  MessageBytes memory;
  const auto found = free_.lower_bound(bytes);
  if (found == free_.end() || found->first > 2 * bytes) {
    // Whatever is kept is too small, or too large to be spent on so little.
    while (kept_ > 0 && held_ + bytes + kept_ > most_kept_) drop_largest();
    memory = allocated(bytes);
  } else {
    kept_ -= found->first;
    memory = std::move(found->second);
    free_.erase(found);
  }
  held_ += bytes;
  most_ = std::max(most_, held_ + kept_);
  return memory;
}

void MessageMemory::give_back(MessageBytes memory, std::size_t bytes) {
  const std::scoped_lock lock(mutex_);
  held_ -= bytes;
  if (!memory) return;
  kept_ += memory.room;
  const std::size_t room = memory.room;
  free_.emplace(room, std::move(memory));
  while (kept_ > 0 && held_ + kept_ > most_kept_) drop_largest();
}

void MessageMemory::drop_largest() {
  const auto last = std::prev(free_.end());
  kept_ -= last->first;
  free_.erase(last);
}

void OwnMessages::put(MessageBytes message, std::size_t bytes) {
  const std::scoped_lock lock(mutex_);
  if (is_closed_) return;
  messages_.push_back(std::move(message));
  waiting_ += bytes;
  changed_.notify_all();
}

MessageBytes OwnMessages::take(std::size_t bytes) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return !messages_.empty() || is_closed_; });
  if (messages_.empty()) return {};
  MessageBytes message = std::move(messages_.front());
  messages_.pop_front();
  waiting_ -= bytes;
  changed_.notify_all();
  return message;
}

bool OwnMessages::wait_for_less(std::size_t bytes) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return waiting_ < std::max<std::size_t>(bytes, 1) || is_closed_; });
  return !is_closed_;
}

void OwnMessages::close() {
  const std::scoped_lock lock(mutex_);
  is_closed_ = true;
  changed_.notify_all();
}

std::size_t OwnMessages::waiting() {
  const std::scoped_lock lock(mutex_);
  return waiting_;
}

}  // namespace shardwright
