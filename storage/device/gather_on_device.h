#pragma once

#include <cstdint>

#include "storage/boxes/gather.h"
#include "storage/device/device_gatherer.h"

namespace shardwright {

/// Adds bytes [begin, begin + count) of the row-major form of a tensor on the gatherer's device to the part
/// that has begun; both are multiples of element_bytes, which is 1, 2, 4, 8 or 16.
void gather(const TensorInMemory& tensor, std::uint64_t begin, std::uint64_t count, DeviceGatherer& gatherer);

}  // namespace shardwright
