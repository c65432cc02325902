#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "storage/boxes/gather.h"
#include "storage/device/device_gatherers.h"

namespace shardwright {

/// A tensor on a CUDA device, and where its row-major bytes go in CPU memory.
struct CopyOut {
  std::string name;  ///< for messages
  TensorInMemory tensor;
  std::byte* to = nullptr;
};

/// Copies tensors out, on up to `threads` threads (0: all processors), by way of 8 MiB of pinned memory for
/// each of them and each device. When it returns, all of it is done. Throws Error(device), naming tensor and
/// call.
GatherFigures copy_out(std::span<const CopyOut> copies, int threads, const DeviceOptions& options);

}  // namespace shardwright
