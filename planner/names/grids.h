#pragma once

#include <memory>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/geometry/correspondence.h"

namespace shardwright {

/// A tensor of one entry for each block of another one's elements: scales, or the bytes that elements share.
struct Grid {
  Shape shape;   ///< of the grid: of as many of the other tensor's dimensions, from the outermost on
  Shape blocks;  ///< elements of a block along each of the other tensor's dimensions; 0: all there are
};

/// An HF tensor, its grid, and which part of a native tensor it is.
struct GriddedPart {
  const Correspondence* of;  ///< several parts may share one
  Box native_box;            ///< takes the place of the correspondence's
  Grid grid;                 ///< of the HF tensor; the same for all that share a correspondence
};

/// A part's grid inside the native tensor's.
struct PlacedGrid {
  std::shared_ptr<const Correspondence> of;  ///< shared as the parts' are
  Box native_box;
};

/// The grid of a native tensor, made of those of its parts.
struct NativeGrid {
  Shape shape;
  std::vector<PlacedGrid> parts;  ///< in the order of those given
};

/// The grid of the native tensor that these parts make up. Where parts are joined along a dimension, so are
/// their grids: the blocks of each part begin with it. Throws Error(mismatch), saying why, if a block of an
/// HF tensor is no block of the native one: its elements are taken apart or put in another order. There is at
/// least one part.
///
/// Two matrices [200, 64], transposed and joined to [64, 400], with a scale for each 128 x 32 block: their
/// grids [2, 2] become [2, 4].
NativeGrid native_grid(const std::vector<GriddedPart>& parts);

}  // namespace shardwright
