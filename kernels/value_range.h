#pragma once

#include "kernels/dtype.h"

namespace shardwright {

/// True if every number of dtype `from` is a number of dtype `to`, infinities included, so that a cast loses
/// nothing. Which NaN a NaN is does not count.
bool holds_all(DType to, DType from);

}  // namespace shardwright
