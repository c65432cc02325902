#include "storage/device/staging.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <utility>

#include "storage/device/device_error.h"
#include "storage/files/page_cache.h"
#include "storage/rounded_up.h"

namespace shardwright {

std::byte* Staging::room_for(std::size_t bytes, const std::string& tensor) {
  if (size_ >= bytes) return memory_;
  close(tensor);
  if (pinned_by_ != nullptr) {
    void* memory = nullptr;
    const DeviceStatus status = pinned_by_->pinned_allocate(&memory, bytes);
    if (status != device_status::success)
      throw device_error(*pinned_by_, status, "cudaHostAlloc", -1, tensor);
    memory_ = static_cast<std::byte*>(memory);
    size_ = bytes;
    return memory_;
  }
  const std::size_t unit = huge_pages_ ? huge_page_bytes : direct_alignment;
  const std::size_t whole = rounded_up(bytes, unit);
  memory_ = static_cast<std::byte*>(std::aligned_alloc(unit, whole));
  if (memory_ == nullptr) throw std::bad_alloc();
  if (huge_pages_) ::madvise(memory_, whole, MADV_HUGEPAGE);  // a wish: the kernel may have none left
  size_ = huge_pages_ ? whole : bytes;
  return memory_;
}

void Staging::close(const std::string& tensor) {
  if (const DeviceStatus status = release(); status != device_status::success) {
    throw device_error(*pinned_by_, status, "cudaFreeHost", -1, tensor);
  }
}

DeviceStatus Staging::release() {
  std::byte* const memory = std::exchange(memory_, nullptr);
  size_ = 0;
  if (memory == nullptr) return device_status::success;
  if (pinned_by_ != nullptr) return pinned_by_->pinned_free(memory);
  std::free(memory);
  return device_status::success;
}

}  // namespace shardwright
