#include "storage/files/upload.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "planner/error.h"
#include "storage/files/printable.h"

namespace shardwright {
namespace {

constexpr std::uint64_t smallest_part_bytes = std::uint64_t{8} << 20;

/// S3 takes 10,000 parts.
constexpr std::uint64_t most_parts = 8192;

/// Parts that may be whole and wait for those before them to be sent.
constexpr std::size_t most_waiting = 2;

}  // namespace

std::uint64_t bytes_of_part(std::uint64_t file_bytes) {
  const std::uint64_t units = (file_bytes + smallest_part_bytes - 1) / smallest_part_bytes;
  return smallest_part_bytes * std::max<std::uint64_t>(1, (units + most_parts - 1) / most_parts);
}

Upload::Upload(std::string name, std::uint64_t size, SendPart send)
    : name_(std::move(name)), size_(size), part_bytes_(bytes_of_part(size)), send_(std::move(send)) {
  parts_.resize(static_cast<std::size_t>((size_ + part_bytes_ - 1) / part_bytes_));
}

void Upload::write(std::uint64_t offset, const std::byte* bytes, std::uint64_t count) {
  if (offset > size_ || count > size_ - offset) {
    throw Error(ErrorKind::argument, printable(name_) + ": expected bytes of a file of " +
                                         std::to_string(size_) + ", found " + std::to_string(count) +
                                         " of them from " + std::to_string(offset) + " on");
  }
  if (count == 0) return;
  const auto first = static_cast<std::size_t>(offset / part_bytes_);
  const auto last = static_cast<std::size_t>((offset + count - 1) / part_bytes_);
  const auto overlap = [&](std::size_t part) {
    const std::uint64_t begin = std::max(offset, part * part_bytes_);
    return std::pair(begin, std::min(offset + count, part * part_bytes_ + bytes_in(part)) - begin);
  };
  std::vector<std::byte*> memory;
  {
    // Waits while parts are whole faster than they are sent, which does not wait for this.
    std::unique_lock lock(mutex_);
    sent_.wait(lock, [&] { return failure_ != nullptr || waiting() <= most_waiting; });
    if (failure_ != nullptr) std::rethrow_exception(failure_);
    for (std::size_t part = first; part <= last; ++part)
      memory.push_back(memory_of(part, overlap(part).second));
  }
  for (std::size_t part = first; part <= last; ++part) {
    const auto [begin, taken] = overlap(part);
    std::memcpy(memory[part - first] + (begin - part * part_bytes_), bytes + (begin - offset), taken);
  }
  // Only now: a part of these that lacks bytes while others are sent would hold up all behind it.
  std::unique_lock lock(mutex_);
  for (std::size_t part = first; part <= last; ++part) parts_[part].written += overlap(part).second;
  send_what_is_whole(lock);
}

void Upload::finish() {
  std::unique_lock lock(mutex_);
  if (parts_.empty() && !std::exchange(is_sending_, true)) send_(name_, 0, {});
  sent_.wait(lock, [&] { return failure_ != nullptr || waiting() == 0; });
  if (failure_ != nullptr) std::rethrow_exception(failure_);
  if (next_ == parts_.size()) return;
  throw Error(ErrorKind::argument,
              printable(name_) + ": " + std::to_string(bytes_in(next_) - parts_[next_].written) +
                  " bytes from byte " + std::to_string(next_ * part_bytes_) + " on have not been written");
}

std::byte* Upload::memory_of(std::size_t part, std::uint64_t bytes) {
  Part& own = parts_[part];
  if (own.promised + bytes > bytes_in(part)) {
    throw Error(ErrorKind::malformed, printable(name_) + ": expected each byte once, found more of them in " +
                                          std::to_string(bytes_in(part)) + " bytes from byte " +
                                          std::to_string(part * part_bytes_) + " on");
  }
  own.promised += bytes;
  if (own.bytes == nullptr) {
    own.bytes = std::make_unique_for_overwrite<std::byte[]>(bytes_in(part));
    held_bytes_ += bytes_in(part);
    peak_bytes_ = std::max(peak_bytes_, held_bytes_);
  }
  return own.bytes.get();
}

void Upload::send_what_is_whole(std::unique_lock<std::mutex>& lock) {
  if (is_sending_) return;  // who does will see this part, too
  is_sending_ = true;
  while (failure_ == nullptr && waiting() > 0) {
    const std::uint64_t begin = next_ * part_bytes_;
    const std::uint64_t bytes = bytes_in(next_);
    FilePart part{begin, bytes, std::move(parts_[next_].bytes)};
    lock.unlock();
    std::exception_ptr failure;
    try {
      send_(name_, size_, std::move(part));
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    ++next_;
    held_bytes_ -= bytes;
    failure_ = failure;
    sent_.notify_all();
  }
  is_sending_ = false;
  if (failure_ != nullptr) std::rethrow_exception(failure_);
}

std::size_t Upload::waiting() const {
  std::size_t end = next_;
  while (end < parts_.size() && parts_[end].written == bytes_in(end)) ++end;
  return end - next_;
}

std::uint64_t Upload::bytes_in(std::size_t part) const {
  return std::min(part_bytes_, size_ - part * part_bytes_);
}

}  // namespace shardwright
