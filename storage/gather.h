#pragma once

#include <cstddef>
#include <cstdint>

#include "planner/box.h"

namespace shardwright {

/// A tensor in memory, of elements of any kind.
struct TensorInMemory {
  const std::byte* data = nullptr;
  Shape shape;
  Shape strides;  ///< elements
  std::uint64_t element_bytes = 1;
};

/// True if the tensor's row-major bytes lie in memory one after the other.
bool is_contiguous(const TensorInMemory& tensor);

/// Copies bytes [begin, begin + count) of the tensor's row-major form; both are multiples of element_bytes.
void gather(const TensorInMemory& tensor, std::uint64_t begin, std::uint64_t count, std::byte* into);

}  // namespace shardwright
