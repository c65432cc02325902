#include "storage/staging.h"

#include <sys/mman.h>

#include <new>

#include "storage/page_cache.h"

namespace shardwright {
std::byte* Staging::room_for(std::size_t bytes) {
  if (size_ >= bytes) return memory_.get();
  memory_.reset();
  size_ = 0;
  const std::size_t unit = huge_pages_ ? huge_page_bytes : direct_alignment;
  const std::size_t whole = (bytes + unit - 1) / unit * unit;
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(unit, whole)));
  if (!memory_) throw std::bad_alloc();
  if (huge_pages_) ::madvise(memory_.get(), whole, MADV_HUGEPAGE);  // a wish: the kernel may have none left
  size_ = huge_pages_ ? whole : bytes;
  return memory_.get();
}

}  // namespace shardwright
