#pragma once

#include <cstdint>

#include "planner/geometry/box.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/axis_expression.h"

namespace shardwright {

/// What an axis expression comes to for two tensors of these shapes, for expert and shard 0.
struct AxisExpression::Resolved {
  Shape hf_shape;
  Shape native_shape;
  Correspondence correspondence;

  /// How native_box goes on from one HF tensor to the next.
  struct Counter {
    int factor = -1;         ///< of native_box that counts them; -1: none does
    std::int64_t step = 0;   ///< in that factor, from one to the next
    std::int64_t count = 1;  ///< of them
  };
  Counter experts;
  Counter shards;

  /// native_box of an expert and a shard.
  Box native_box_of(std::int64_t expert, std::int64_t shard) const;
};

}  // namespace shardwright
