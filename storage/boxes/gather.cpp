#include "storage/boxes/gather.h"

#include <algorithm>
#include <cstring>
#include <utility>

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

/// Elements [begin, begin + count) of what `box` is along dimensions d and on; along those before d it has
/// one index.
void add_boxes(const Shape& shape, std::size_t d, Box box, std::int64_t begin, std::int64_t count,
               std::vector<Box>& boxes) {
  if (count == 0) return;
  if (d == shape.size()) return boxes.push_back(std::move(box));
  std::int64_t inner = 1;
  for (std::size_t i = d + 1; i < shape.size(); ++i) inner *= shape[i];
  const auto add_part_of = [&](std::int64_t index, std::int64_t from, std::int64_t elements) {
    box.offset[d] = index;
    box.size[d] = 1;
    add_boxes(shape, d + 1, box, from, elements, boxes);
  };
  std::int64_t index = begin / inner;
  if (const std::int64_t skipped = begin % inner; skipped > 0 || count < inner) {
    const std::int64_t elements = std::min(inner - skipped, count);
    add_part_of(index++, skipped, elements);
    count -= elements;
  }
  if (count >= inner) {
    box.offset[d] = index;
    box.size[d] = count / inner;
    boxes.push_back(box);
  }
  add_part_of(index + count / inner, 0, count % inner);
}

}  // namespace

std::vector<Box> boxes_in_order(const Shape& shape, std::int64_t begin, std::int64_t count) {
  std::vector<Box> boxes;
  add_boxes(shape, 0, whole(shape), begin, count, boxes);
  return boxes;
}

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
