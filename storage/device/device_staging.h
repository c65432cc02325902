#pragma once

#include <cstddef>
#include <map>
#include <string>

#include "storage/device/device_calls.h"
#include "storage/files/gpu_direct.h"

namespace shardwright {

/// Memory of CUDA devices that files are read into: for each device one block, of one size. REQUIRES: one
/// thread at a time; the calls outlive it.
class DeviceStaging {
 public:
  /// No calls: there is never any room.
  DeviceStaging(const DeviceCalls* devices, const GpuDirectCalls* gpu_direct, std::size_t bytes)
      : devices_(devices), gpu_direct_(gpu_direct), bytes_(bytes) {}
  DeviceStaging(const DeviceStaging&) = delete;
  DeviceStaging& operator=(const DeviceStaging&) = delete;
  ~DeviceStaging() { release(); }

  /// The block of that device, which becomes the calling thread's current one; null if there is none to be
  /// had, now or at the first call, or if it would be too small.
  std::byte* room_on(int device, std::size_t bytes);

  /// Gives the blocks back. Throws Error(device) naming the tensor.
  void close(const std::string& tensor);

  std::size_t size_on(int device) const;

 private:
  std::byte* allocate();
  DeviceStatus release();

  const DeviceCalls* const devices_;
  const GpuDirectCalls* const gpu_direct_;
  const std::size_t bytes_;
  std::map<int, std::byte*> blocks_;  // by device; null: refused
};

}  // namespace shardwright
