#pragma once

#include <vector>

#include "planner/geometry/box.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// Elements of a source tensor (or chunk) that are a box of it, as it is seen, and where they lie.
struct SeenBox {
  Shape view;         ///< sizes of the view in which the chunk is seen; empty: its own shape
  Box box;            ///< of the chunk, seen so
  Lattice in_native;  ///< factor i is that of the box
};

/// What a chunk of an HF tensor stores of a box of a view of that tensor, each element once.
///
/// Where the chunk begins and ends with an index of a dimension's outermost factor, its view has the same
/// factors. Where it does not, or `in_own_shape` asks for it, there is a box for each index of the outer
/// factors, of which the innermost is a range of the dimension.
std::vector<SeenBox> seen_in(const SourceTensor& chunk, const View& hf_view, Placed placed,
                             bool in_own_shape);

}  // namespace shardwright
