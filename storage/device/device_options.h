#pragma once

#include <cstddef>
#include <map>

namespace shardwright {

struct DeviceCalls;     // storage/device/device_calls.h
struct GpuDirectCalls;  // storage/files/gpu_direct.h

/// How tensors on CUDA devices are read or written.
struct DeviceOptions {
  /// Bytes that may be taken of each device that has one of the tensors, beside them; at least 64 KiB.
  std::size_t memory = std::size_t{256} << 20;

  /// For each device, the stream whose work so far comes before what is done here; its default stream where
  /// none is named.
  std::map<int, void*> streams;

  const DeviceCalls* calls = nullptr;                ///< for tests; null: cuda_calls()
  const GpuDirectCalls* gpu_direct_calls = nullptr;  ///< with those; else those of the installed library
};

/// The calls to reach devices with; null where this build has no kernels for them.
const DeviceCalls* calls_of(const DeviceOptions& options);

}  // namespace shardwright
