#include "storage/load/parts_of_pieces.h"

#include <cstring>

#include "planner/geometry/byte_boxes.h"

namespace shardwright {
namespace {

/// Where a box inside another lies in the memory that holds the other.
StridedMemory at_box(const StridedMemory& memory, const Box& outer, const Box& inner, DType dtype) {
  const Box all = in_units(dtype, outer);
  const Box part = in_units(dtype, inner);
  const Shape steps = strides_in_units(dtype, memory.strides);
  std::int64_t units = 0;
  for (std::size_t d = 0; d < part.offset.size(); ++d) units += (part.offset[d] - all.offset[d]) * steps[d];
  return {memory.data + units * unit_bytes(dtype), memory.strides};
}

/// The end of a box that lies in that memory.
const std::byte* end_of(const StridedMemory& memory, const Box& box, DType dtype) {
  const Box units = in_units(dtype, box);
  const Shape steps = strides_in_units(dtype, memory.strides);
  std::int64_t last = 0;
  for (std::size_t d = 0; d < units.size.size(); ++d) last += (units.size[d] - 1) * steps[d];
  return memory.data + (last + 1) * unit_bytes(dtype);
}

/// Copies a box of so many units with those strides (units, 1 for the last dimension) to contiguous memory;
/// returns its end.
std::byte* pack_units(const std::byte* from, const Shape& size, const Shape& strides, std::size_t dimension,
                      std::int64_t unit, std::byte* to) {
  if (dimension + 1 >= size.size()) {
    const auto bytes = static_cast<std::size_t>((size.empty() ? 1 : size.back()) * unit);
    std::memcpy(to, from, bytes);
    return to + bytes;
  }
  for (std::int64_t i = 0; i < size[dimension]; ++i)
    to = pack_units(from + i * strides[dimension] * unit, size, strides, dimension + 1, unit, to);
  return to;
}

/// The same for a box with strides of elements.
std::byte* pack(const StridedMemory& from, const Box& box, DType dtype, std::byte* to) {
  return pack_units(from.data, in_units(dtype, box).size, strides_in_units(dtype, from.strides), 0,
                    unit_bytes(dtype), to);
}

}  // namespace

BoxInMemory part_of_share(const SharedPiece& piece, const SharedPiece::Share& share, const BoxInMemory& read,
                          const Catalog& catalog, std::size_t& bytes) {
  const DType dtype = catalog.tensors[piece.source].dtype;
  BoxInMemory part{share.box, at_box(read.elements, piece.box, share.box, dtype)};
  const std::byte* end = end_of(part.elements, share.box, dtype);
  if (piece.scales >= 0) {
    const DType of_scales = catalog.tensors[static_cast<std::size_t>(piece.scales)].dtype;
    part.scales = at_box(read.scales, piece.scale_box, share.scale_box, of_scales);
    end = end_of(part.scales, share.scale_box, of_scales);
  }
  bytes = static_cast<std::size_t>(end - part.elements.data);
  return part;
}

void pack(const SharedPiece& piece, const SharedPiece::Share& share, const BoxInMemory& part,
          const Catalog& catalog, std::byte* to) {
  std::byte* const end = pack(part.elements, share.box, catalog.tensors[piece.source].dtype, to);
  if (piece.scales < 0) return;
  pack(part.scales, share.scale_box, catalog.tensors[static_cast<std::size_t>(piece.scales)].dtype, end);
}

BoxInMemory packed_part(const SharedPiece& piece, const SharedPiece::Share& share, const std::byte* from,
                        const Catalog& catalog) {
  const DType dtype = catalog.tensors[piece.source].dtype;
  const Shape units = contiguous_strides(in_units(dtype, share.box).size);
  BoxInMemory part{share.box, {from, strides_in_elements(dtype, units)}};
  if (piece.scales >= 0)
    part.scales = {from + bytes_of_box(dtype, share.box), contiguous_strides(share.scale_box.size)};
  return part;
}

}  // namespace shardwright
