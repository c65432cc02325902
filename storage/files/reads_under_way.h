#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>

#include "storage/files/input_file.h"

namespace shardwright {

/// Reads that go on while the thread that began them does something else: by the kernel, of files; by threads
/// that each wait for a server, of objects. REQUIRES: one thread calls. The destructor waits until nothing
/// writes into the memory of reads in flight; of objects it gives them up first.
class ReadsUnderWay {
 public:
  struct Completion {
    std::uint64_t tag = 0;       ///< of the read
    std::int64_t result = 0;     ///< bytes read, fewer than asked for at the end of the file; or -errno
    std::exception_ptr failure;  ///< of an object, for good; null: see result
    ArrivedBytes bytes;          ///< of an object for which no place was given
  };

  virtual ~ReadsUnderWay() = default;
  ReadsUnderWay(const ReadsUnderWay&) = delete;
  ReadsUnderWay& operator=(const ReadsUnderWay&) = delete;

  /// Begins to read `length` bytes at `offset`. Of a file, `descriptor` is one of its own; of an object, `to`
  /// may be null: the bytes then stay where they arrive. `file` and `to` must stay valid until the
  /// completion. No more may be in flight than the depth. Throws Error(io) if the kernel refuses.
  virtual void read(const InputFile& file, int descriptor, std::uint64_t offset, std::byte* to,
                    std::uint32_t length, std::uint64_t tag) = 0;

  /// Waits for one of the reads in flight, of which there must be one.
  virtual Completion wait() = 0;

  /// The same, but waits no longer than that: nothing if none has ended by then.
  virtual std::optional<Completion> wait_for(std::chrono::microseconds longest) = 0;

 protected:
  ReadsUnderWay() = default;
};

/// By io_uring, up to `depth` at a time. Null where there is none.
std::unique_ptr<ReadsUnderWay> reads_by_uring(unsigned depth);

/// Of remote objects: up to `connections` of them are read at a time, by a thread each; more wait their turn.
/// A store can be silent for long: once `stopped` (may be null, else outlives this) is true, wait() throws
/// Error(io).
std::unique_ptr<ReadsUnderWay> reads_of_objects(unsigned connections, const std::atomic<bool>* stopped);

}  // namespace shardwright
