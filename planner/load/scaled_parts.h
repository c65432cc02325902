#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/encodings.h"

namespace shardwright {

/// A part of a block-scaled weight whose scales all lie in one tensor (or chunk) of scales.
struct ScaledPart {
  Box box;                               ///< of the whole weight
  const SourceTensor* scales = nullptr;  ///< owned by the catalog
  Box scale_box;                         ///< inside `scales`
  std::int64_t first_row_in_block = 0;   ///< where the box begins inside the first block of scale_box
  std::int64_t first_column_in_block = 0;
};

/// Cuts a box of a weight of that shape at the edges of what each chunk of its scales serves. What no chunk
/// serves is in no part.
std::vector<ScaledPart> scaled_parts(const Encoding& encoding, const Box& box, const Shape& weight_shape,
                                     std::span<const SourceTensor> scales);

}  // namespace shardwright
