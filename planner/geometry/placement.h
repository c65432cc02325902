#pragma once

#include <cstdint>
#include <vector>

#include "planner/geometry/box.h"

namespace shardwright {

/// How a DTensor lies along one dimension of its device mesh, with the meaning that torch.distributed.tensor
/// gives it.
struct Placement {
  enum class Kind : std::uint8_t { replicate, shard, strided_shard };

  Kind kind = Kind::replicate;
  int dimension = 0;  ///< tensor dimension that is split (shard, strided_shard)
  std::int64_t split_factor =
      1;  ///< strided_shard: into how many parts the dimension is cut before it is dealt out

  bool operator==(const Placement&) const = default;
};

/// A part of a local tensor that is one rectangle of the global tensor.
struct LocalBox {
  Box global;          ///< where it lies in the global tensor
  Shape local_offset;  ///< where it begins in the local tensor

  bool operator==(const LocalBox&) const = default;
};

/// The parts of the global tensor that one rank holds. Usually one box; several where strided shards leave
/// gaps; none where the rank's shard is empty.
///
/// Mesh dimensions are applied from left to right, each cutting what the ones before it left, as torch.chunk
/// cuts: all parts are ceil(size / parts) long, the last ones shorter or empty. Example: 5 rows on a mesh of
/// 2 × 2 with (shard 0, shard 0): 3 + 2 rows, then 2 + 1 and 1 + 1.
///
/// Source: torch 2.13, torch/distributed/tensor/_utils.py, _compute_local_shape_and_global_offset.
std::vector<LocalBox> local_boxes(const Shape& global_shape, const Shape& mesh_shape, const Shape& coordinate,
                                  const std::vector<Placement>& placements);

/// Shape of the local tensor that those boxes make up.
Shape local_shape(const Shape& global_shape, const Shape& mesh_shape, const Shape& coordinate,
                  const std::vector<Placement>& placements);

}  // namespace shardwright
