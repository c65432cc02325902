#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>

namespace shardwright {

inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

/// Memory between files and shards. It grows to the largest task that it meets, so that small loads take
/// little, and never holds an old and a new block at once. Aligned for reading past the page cache.
class Staging {
 public:
  explicit Staging(bool huge_pages = false) : huge_pages_(huge_pages) {}

  /// At least `bytes` of memory; what was there before is gone if it had to grow. Throws std::bad_alloc.
  std::byte* room_for(std::size_t bytes);

  std::size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t size_ = 0;
  bool huge_pages_;
};

}  // namespace shardwright
