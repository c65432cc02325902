#pragma once

#include <cstddef>

#include "planner/geometry/box.h"

namespace shardwright {

/// Elements in memory, of the CPU or of a device: the first, and how far apart they lie along each dimension.
struct StridedMemory {
  const std::byte* data = nullptr;  ///< null: there are none
  Shape strides;                    ///< elements; 1 for the last dimension of what is packed or has scales
};

}  // namespace shardwright
