#pragma once

#include <cstddef>
#include <string>

#include "storage/device/device_calls.h"

namespace shardwright {

inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

/// Memory between files and shards. It grows to the largest task that it meets, so that small loads take
/// little, and never holds an old and a new block at once. Aligned for reading past the page cache, unless it
/// is pinned: then as the run-time aligns it, to cache lines at least.
class Staging {
 public:
  /// `pinned_by`: the calls to allocate memory with that devices copy from; they must outlive it. Null:
  /// memory for the CPU alone.
  explicit Staging(bool huge_pages = false, const DeviceCalls* pinned_by = nullptr)
      : huge_pages_(huge_pages), pinned_by_(pinned_by) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() { release(); }

  /// At least `bytes` of memory; what was there before is gone if it had to grow. Throws std::bad_alloc, or
  /// Error(device) naming the tensor it is for if it is pinned.
  std::byte* room_for(std::size_t bytes, const std::string& tensor = {});

  /// Gives the memory back. Throws Error(device) naming the tensor.
  void close(const std::string& tensor);

  std::size_t size() const { return size_; }

 private:
  DeviceStatus release();

  std::byte* memory_ = nullptr;
  std::size_t size_ = 0;
  const bool huge_pages_;
  const DeviceCalls* const pinned_by_;
};

}  // namespace shardwright
