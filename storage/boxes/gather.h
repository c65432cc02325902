#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner/geometry/box.h"

namespace shardwright {

/// A tensor in memory, of elements of any kind.
struct TensorInMemory {
  const std::byte* data = nullptr;
  Shape shape;
  Shape strides;  ///< elements
  std::uint64_t element_bytes = 1;
  int cuda_device = -1;  ///< that it is on; -1: it is in CPU memory
};

/// True if the tensor's row-major bytes lie in memory one after the other.
bool is_contiguous(const TensorInMemory& tensor);

/// The boxes of a tensor of that shape that elements [begin, begin + count) of its row-major order are, in
/// that order; each is whole along all dimensions behind the first that it has several indices of.
std::vector<Box> boxes_in_order(const Shape& shape, std::int64_t begin, std::int64_t count);

/// Copies bytes [begin, begin + count) of the row-major form of a tensor in CPU memory; both are multiples of
/// element_bytes.
void gather(const TensorInMemory& tensor, std::uint64_t begin, std::uint64_t count, std::byte* into);

}  // namespace shardwright
