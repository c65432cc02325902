#pragma once

#include <functional>
#include <vector>

#include "storage/write/export.h"

namespace shardwright {

/// Fills the parts of specs without memory, as many at a time as there is room for, and calls use with them.
void for_each_batch(const std::vector<TensorSpec>& specs, const ValuesElsewhere& values,
                    const std::function<void(const std::vector<TensorSpec>&)>& use);

}  // namespace shardwright
