#include "storage/handover/stored_box.h"

#include <cstddef>
#include <cstdint>
#include <utility>

#include "planner/geometry/byte_boxes.h"

namespace shardwright {
namespace {

/// A run of elements [begin, end) of some dimensions, counted row-major.
struct Run {
  std::int64_t begin;
  std::int64_t end;
};

/// The run that a box is in these dimensions; nothing if it has gaps.
std::optional<Run> run_of(const Shape& shape, const Box& box, std::size_t first, std::size_t last) {
  Run run{0, 1};
  bool is_one = true;  // so far the box has one index in each dimension
  for (std::size_t d = first; d < last; ++d) {
    const bool is_all = box.offset[d] == 0 && box.size[d] == shape[d];
    if (!is_one && !is_all) return std::nullopt;
    const std::int64_t length = run.end - run.begin;
    run.begin = run.begin * shape[d] + (is_one ? box.offset[d] : 0);
    run.end = run.begin + length * box.size[d];
    is_one = is_one && box.size[d] == 1;
  }
  return run;
}

/// Adds the box that a run is in these dimensions; false if it is none.
bool add_box(const Run& run, const Shape& shape, std::size_t first, std::size_t last, Box& box) {
  std::int64_t inner = 1;  // elements of the dimensions after d
  for (std::size_t d = last; d-- > first; inner *= shape[d]) {
    if (run.begin % inner != 0 || run.end % inner != 0) return false;
    const std::int64_t begin = run.begin / inner;
    const std::int64_t end = run.end / inner;
    if (begin / shape[d] != (end - 1) / shape[d]) continue;  // it goes on in the dimension before
    std::int64_t outer = begin / shape[d];
    for (std::size_t e = first; e < last; ++e) {
      box.offset.push_back(0);
      box.size.push_back(e > d ? shape[e] : 1);
    }
    box.offset[d] = begin % shape[d];
    box.size[d] = end - begin;
    for (std::size_t e = d; e-- > first; outer /= shape[e]) box.offset[e] = outer % shape[e];
    return true;
  }
  return first == last && run.end - run.begin == 1;
}

}  // namespace

std::optional<Box> box_in_shape(const Shape& from, const Box& box, const Shape& to) {
  if (from == to) return box;
  Box found;
  std::size_t i = 0;
  std::size_t j = 0;
  while (i < from.size() || j < to.size()) {
    // The fewest dimensions of both that hold as many elements.
    const std::size_t first_i = i;
    const std::size_t first_j = j;
    std::int64_t of_from = i < from.size() ? from[i++] : 1;
    std::int64_t of_to = j < to.size() ? to[j++] : 1;
    while (of_from != of_to) {
      if (of_from < of_to && i < from.size()) {
        of_from *= from[i++];
      } else if (of_to < of_from && j < to.size()) {
        of_to *= to[j++];
      } else {
        return std::nullopt;
      }
    }
    const std::optional<Run> run = run_of(from, box, first_i, i);
    if (!run || !add_box(*run, to, first_j, j, found)) return std::nullopt;
  }
  return found;
}

StoredBox stored_box(const SourceTensor& tensor, const Shape& seen, const Box& box) {
  const DType dtype = tensor.stored == nullptr ? tensor.dtype : tensor.stored->dtype;
  const Shape& shape = tensor.stored == nullptr ? tensor.shape : tensor.stored->shape;
  if (is_empty(box)) return {dtype, shape, {Shape(shape.size(), 0), Shape(shape.size(), 0)}};
  if (tensor.stored == nullptr && !is_packed(dtype)) {
    if (auto plain = box_in_shape(seen, box, shape)) return {dtype, shape, *std::move(plain)};
    return {dtype, seen, box};
  }
  // By bytes, since the elements of the files are not those that are seen.
  const std::int64_t seen_bytes = unit_bytes(tensor.dtype);
  Shape from = in_units(tensor.dtype, seen);
  Box bytes = in_units(tensor.dtype, box);
  from.push_back(seen_bytes);
  bytes.offset.push_back(0);
  bytes.size.push_back(seen_bytes);
  Shape to = in_units(dtype, shape);
  const std::int64_t stored_bytes = unit_bytes(dtype);
  to.push_back(stored_bytes);
  if (auto plain = box_in_shape(from, bytes, to)) {
    if (plain->size.back() == stored_bytes) {
      to.pop_back();
      plain->offset.pop_back();
      plain->size.pop_back();
      return {is_packed(dtype) ? DType::U8 : dtype, to, *std::move(plain)};
    }
  }
  if (from.size() > 1) {  // bytes along the last dimension
    from.pop_back();
    from.back() *= seen_bytes;
    bytes.offset.pop_back();
    bytes.size.pop_back();
    bytes.offset.back() *= seen_bytes;
    bytes.size.back() *= seen_bytes;
  }
  return {DType::U8, std::move(from), std::move(bytes)};
}

}  // namespace shardwright
