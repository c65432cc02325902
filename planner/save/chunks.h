#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/save/save_wire.h"

namespace shardwright {

/// What keeps chunks from making up a tensor.
struct ChunkFault {
  std::string text;                          ///< "[0:3] and [2:4] overlap"
  std::optional<std::pair<Box, Box>> boxes;  ///< that overlap, if some do
};

/// Orders boxes of `rank` dimensions, each its offsets and then its sizes.
bool comes_before(const std::int64_t* a, const std::int64_t* b, std::size_t rank);

/// Proves that the chunks, in order, hold every element of a tensor of this shape once; or says why not.
std::optional<ChunkFault> fault_of(const Chunking& chunking, const Shape& shape);

Box box_at(const std::int64_t* corners, std::size_t rank);

}  // namespace shardwright
