#include "storage/device/device_staging.h"

#include "storage/device/device_error.h"

namespace shardwright {

std::byte* DeviceStaging::room_on(int device, std::size_t bytes) {
  if (gpu_direct_ == nullptr || bytes > bytes_) return nullptr;
  if (devices_->set_device(device) != device_status::success) return nullptr;
  const auto [found, is_new] = blocks_.try_emplace(device, nullptr);
  if (is_new) found->second = allocate();
  return found->second;
}

std::byte* DeviceStaging::allocate() {
  void* memory = nullptr;
  if (devices_->device_allocate(&memory, bytes_) != device_status::success) return nullptr;
  if (gpu_direct_->register_memory(memory, bytes_)) return static_cast<std::byte*>(memory);
  devices_->device_free(memory);
  return nullptr;
}

void DeviceStaging::close(const std::string& tensor) {
  if (const DeviceStatus status = release(); status != device_status::success) {
    throw device_error(*devices_, status, "cudaFree", -1, tensor);
  }
}

/// The first status that tells of a failure.
DeviceStatus DeviceStaging::release() {
  DeviceStatus first = device_status::success;
  for (const auto& [device, memory] : blocks_) {
    if (memory == nullptr) continue;
    devices_->set_device(device);
    gpu_direct_->release_memory(memory);
    const DeviceStatus status = devices_->device_free(memory);
    if (first == device_status::success) first = status;
  }
  blocks_.clear();
  return first;
}

std::size_t DeviceStaging::size_on(int device) const {
  const auto found = blocks_.find(device);
  return found == blocks_.end() || found->second == nullptr ? 0 : bytes_;
}

}  // namespace shardwright
