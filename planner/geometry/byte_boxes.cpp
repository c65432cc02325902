#include "planner/geometry/byte_boxes.h"

#include <algorithm>
#include <utility>

namespace shardwright {
std::int64_t unit_bytes(DType dtype) { return is_packed(dtype) ? 1 : bytes_of(dtype); }

Shape in_units(DType dtype, Shape shape) {
  if (is_packed(dtype) && !shape.empty()) shape.back() = (shape.back() + 1) / 2;
  return shape;
}

Box in_units(DType dtype, Box box) {
  if (!is_packed(dtype) || box.size.empty()) return box;
  const std::int64_t end = (box.offset.back() + box.size.back() + 1) / 2;
  box.offset.back() /= 2;
  box.size.back() = box.size.back() == 0 ? 0 : end - box.offset.back();
  return box;
}

Lattice in_units(DType dtype, Lattice lattice) {
  if (!is_packed(dtype) || lattice.first.empty()) return lattice;
  const std::int64_t end = (lattice.first.back() + lattice.sizes.back() + 1) / 2;
  lattice.first.back() /= 2;
  lattice.sizes.back() = end - lattice.first.back();
  return lattice;
}

std::int64_t bytes_of_box(DType dtype, const Box& box) {
  return volume(in_units(dtype, box).size) * unit_bytes(dtype);
}

Shape strides_in_elements(DType dtype, Shape strides) {
  if (!is_packed(dtype)) return strides;
  for (std::int64_t& stride : strides) stride *= 2;
  if (!strides.empty()) strides.back() = 1;
  return strides;
}

Shape strides_in_units(DType dtype, Shape strides) {
  if (!is_packed(dtype)) return strides;
  for (std::int64_t& stride : strides) stride /= 2;
  if (!strides.empty()) strides.back() = 1;
  return strides;
}

std::int64_t bytes_to(DType dtype, std::int64_t elements) { return elements * bits_of(dtype) / 8; }

}  // namespace shardwright
