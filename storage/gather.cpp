#include "storage/gather.h"

#include <algorithm>
#include <cstring>

namespace shardwright {

namespace {

/// Bytes that lie together at the end of the tensor's order: the product of the innermost dimensions that
/// have no gaps between them.
std::uint64_t run_bytes(const TensorInMemory& tensor, std::size_t& outer) {
  std::int64_t run = 1;
  outer = tensor.shape.size();
  while (outer > 0 && (tensor.strides[outer - 1] == run || tensor.shape[outer - 1] == 1)) {
    run *= tensor.shape[outer - 1];
    --outer;
  }
  return static_cast<std::uint64_t>(run) * tensor.element_bytes;
}

}  // namespace

bool is_contiguous(const TensorInMemory& tensor) {
  std::size_t outer = 0;
  run_bytes(tensor, outer);
  return outer == 0 || volume(tensor.shape) == 0;
}

void gather(const TensorInMemory& tensor, std::uint64_t begin, std::uint64_t count, std::byte* into) {
  std::size_t outer = 0;
  const std::uint64_t run = run_bytes(tensor, outer);
  while (count > 0) {
    std::uint64_t row = begin / run;
    const std::uint64_t in_row = begin % run;
    std::int64_t element = 0;
    for (std::size_t d = outer; d-- > 0;) {
      const auto size = static_cast<std::uint64_t>(tensor.shape[d]);
      element += static_cast<std::int64_t>(row % size) * tensor.strides[d];
      row /= size;
    }
    const std::uint64_t copied = std::min(run - in_row, count);
    std::memcpy(into, tensor.data + element * static_cast<std::int64_t>(tensor.element_bytes) + in_row,
                copied);
    into += copied;
    begin += copied;
    count -= copied;
  }
}

}  // namespace shardwright
