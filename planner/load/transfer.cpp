#include <optional>

#include "planner/geometry/lattice.h"
#include "planner/geometry/view.h"
#include "planner/load/load_plan.h"
#include "planner/names/encodings.h"

namespace shardwright {

Lattice read_lattice(const Transfer& transfer, const SourceTensor& source) {
  if (transfer.source_view.empty()) return lattice_of(transfer.source_box);
  return lattice_of(*view_with(transfer.source_view, source.shape), transfer.source_box);
}

Lattice written_lattice(const Transfer& transfer) {
  const Shape steps = transfer.steps.empty() ? Shape(transfer.axes.size(), 1) : transfer.steps;
  return {transfer.destination_offset, transfer.source_box.size, transfer.axes, steps};
}

Shape strides_along(const Lattice& lattice, const Shape& tensor_strides) {
  Shape strides;
  strides.reserve(lattice.axes.size());
  for (std::size_t i = 0; i < lattice.axes.size(); ++i) {
    strides.push_back(lattice.axes[i] < 0
                          ? 0
                          : lattice.steps[i] * tensor_strides[static_cast<std::size_t>(lattice.axes[i])]);
  }
  return strides;
}

Box scale_box_of_part(const Transfer& transfer, const Box& box) {
  Box in_blocks = box;  // counted from the first block of the transfer's scale box
  const std::size_t rank = box.offset.size();
  for (std::size_t d = 0; d < rank; ++d) in_blocks.offset[d] -= transfer.source_box.offset[d];
  in_blocks.offset[rank - 2] += transfer.first_row_in_block;
  in_blocks.offset[rank - 1] += transfer.first_column_in_block;
  Box scales = scale_box_of(transfer.encoding, in_blocks);
  for (std::size_t d = 0; d < scales.offset.size(); ++d) scales.offset[d] += transfer.scale_box.offset[d];
  return scales;
}

bool can_see_scales(const Encoding& encoding, const Shape& view, const Shape& weight_shape) {
  return encoding.block_rows == 1 && !view.empty() && view.back() == weight_shape.back() &&
         encoding.scale_rank == static_cast<int>(weight_shape.size());
}

Shape seen_scale_shape(const Transfer& transfer, const SourceTensor& scales) {
  if (transfer.source_view.empty()) return scales.shape;
  Shape shape = transfer.source_view;
  shape.back() = scales.shape.back();
  return shape;
}

Lattice scale_lattice(const Transfer& transfer, const SourceTensor& scales) {
  if (transfer.source_view.empty()) return lattice_of(transfer.scale_box);
  return lattice_of(*view_with(seen_scale_shape(transfer, scales), scales.shape), transfer.scale_box);
}

std::optional<View> view_with(const Shape& sizes, const Shape& shape) {
  View view;
  std::size_t factor = 0;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    std::int64_t size = 1;
    const std::size_t first = factor;
    // Factors of 1 go to the dimension that is not full yet, or to the last.
    while (factor < sizes.size() && (factor == first || size < shape[d] || d + 1 == shape.size())) {
      const std::int64_t next = sizes[factor];
      if (next < 1 || next > shape[d] / size) return std::nullopt;
      size *= next;
      view.sizes.push_back(next);
      view.dimensions.push_back(static_cast<int>(d));
      ++factor;
    }
    if (factor == first || size != shape[d]) return std::nullopt;
  }
  return factor == sizes.size() ? std::optional(view) : std::nullopt;
}

}  // namespace shardwright
