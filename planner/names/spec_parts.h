#pragma once

#include "planner/geometry/box.h"
#include "planner/names/tensor_spec.h"

namespace shardwright {

/// True if the box of the global tensor lies inside one of the spec's boxes.
bool holds(const TensorSpec& spec, const Box& box);

/// The part of a spec that is this box of the global tensor, which it must hold.
TensorSpec part_of(const TensorSpec& spec, const Box& box);

}  // namespace shardwright
