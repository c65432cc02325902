#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>

namespace shardwright {

/// Reads that the kernel carries out while the thread does something else, by Linux's io_uring. REQUIRES: one
/// thread. The destructor waits for every read still in flight: the kernel must not write into memory that
/// has been given back.
class Uring {
 public:
  struct Completion {
    std::uint64_t tag = 0;  ///< of the read
    int result = 0;         ///< bytes read, fewer than asked for at the end of the file; or -errno
  };

  /// A ring for up to `depth` reads at a time. Null where the build lacks liburing, or where the kernel has
  /// no io_uring or does not let this process use it.
  static std::unique_ptr<Uring> create(unsigned depth);

  virtual ~Uring() = default;
  Uring(const Uring&) = delete;
  Uring& operator=(const Uring&) = delete;

  /// Begins to read `length` bytes at `offset`. `to` must stay valid until the completion; in_flight() must
  /// be less than the depth. Throws Error(io) if the kernel refuses.
  virtual void read(int descriptor, std::uint64_t offset, void* to, std::uint32_t length,
                    std::uint64_t tag) = 0;

  /// Waits for one of the reads in flight, of which there must be one.
  virtual Completion wait() = 0;

  /// The same, but waits no longer than that: nothing if none has ended by then.
  virtual std::optional<Completion> wait_for(std::chrono::microseconds longest) = 0;

  virtual unsigned in_flight() const = 0;

 protected:
  Uring() = default;
};

/// True if create() would give a ring.
bool has_io_uring();

}  // namespace shardwright
