#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace shardwright {

/// Bytes of a file that is sent elsewhere, in memory of their own.
struct FilePart {
  std::uint64_t begin = 0;  ///< byte of the file
  std::uint64_t size = 0;   ///< 0: of a file without bytes
  std::unique_ptr<std::byte[]> bytes;
};

/// Takes the parts of a file, from its first to its last byte, one at a time. May wait, which holds up those
/// who write; may throw, which ends the file. Called on any thread.
using SendPart = std::function<void(const std::string& name, std::uint64_t file_bytes, FilePart part)>;

/// Bytes of each part of a file of that size but the last: at least 8 MiB, and no more than 8,192 parts.
std::uint64_t bytes_of_part(std::uint64_t file_bytes);

/// A file that is written at any places by any number of threads at once, each byte once, and sent part by
/// part in order. Who writes in about the order of the file needs memory for a few parts; what is written
/// far ahead waits in memory until all before it is there. Who writes faster than parts are sent waits.
class Upload {
 public:
  Upload(std::string name, std::uint64_t size, SendPart send);

  /// Writes at byte `offset`. Throws what sending threw, on each thread that writes from then on;
  /// Error: argument for bytes outside the file; malformed for more bytes than there is room for.
  void write(std::uint64_t offset, const std::byte* bytes, std::uint64_t count);

  /// Returns once all has been sent. Throws what sending threw; Error(argument) for a file that lacks bytes.
  void finish();

  /// The most memory that parts took at a time.
  std::uint64_t peak_bytes() const { return peak_bytes_; }

 private:
  struct Part {
    std::unique_ptr<std::byte[]> bytes;  // null: nothing has been written to it, or it has been sent
    std::uint64_t promised = 0;          // bytes that somebody writes, or has written
    std::uint64_t written = 0;
  };

  std::byte* memory_of(std::size_t part, std::uint64_t bytes);  // needs the mutex
  void send_what_is_whole(std::unique_lock<std::mutex>& lock);
  std::size_t waiting() const;  // parts that only sending holds up; needs the mutex
  std::uint64_t bytes_in(std::size_t part) const;

  const std::string name_;
  const std::uint64_t size_;
  const std::uint64_t part_bytes_;
  const SendPart send_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable sent_;
  std::vector<Part> parts_;
  std::size_t next_ = 0;  // the first part that has not been sent
  bool is_sending_ = false;
  std::exception_ptr failure_;
  std::uint64_t held_bytes_ = 0;
  std::uint64_t peak_bytes_ = 0;
};

}  // namespace shardwright
