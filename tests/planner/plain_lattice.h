#pragma once

#include "planner/geometry/lattice.h"

namespace shardwright {

/// The definition: the element of the tensor that is so many indices of each factor from the first one.
inline Shape element_of(const Lattice& lattice, const Shape& step) {
  Shape at = lattice.first;
  for (std::size_t i = 0; i < step.size(); ++i) {
    if (lattice.axes[i] >= 0) at[static_cast<std::size_t>(lattice.axes[i])] += step[i] * lattice.steps[i];
  }
  return at;
}

}  // namespace shardwright
