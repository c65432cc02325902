#include "planner/load/scaled_parts.h"

namespace shardwright {

std::vector<ScaledPart> scaled_parts(const Encoding& encoding, const Box& box, const Shape& weight_shape,
                                     std::span<const SourceTensor> scales) {
  std::vector<ScaledPart> parts;
  for (const SourceTensor& chunk : scales) {
    const Box served = weight_box_of(encoding, {chunk.offset, chunk.shape}, weight_shape);
    ScaledPart part;
    part.box = intersection(box, served);
    if (is_empty(part.box)) continue;
    part.scales = &chunk;
    part.scale_box = scale_box_of(encoding, part.box);
    for (std::size_t d = 0; d < chunk.offset.size(); ++d) part.scale_box.offset[d] -= chunk.offset[d];
    const std::size_t rank = part.box.offset.size();
    part.first_row_in_block = part.box.offset[rank - 2] % encoding.block_rows;
    part.first_column_in_block = part.box.offset[rank - 1] % encoding.block_columns;
    parts.push_back(std::move(part));
  }
  return parts;
}

}  // namespace shardwright
