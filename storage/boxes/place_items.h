#pragma once

#include <cstddef>

#include "planner/load/read_items.h"
#include "planner/names/tensor_spec.h"

namespace shardwright {

/// Where the items of one transfer lie in CPU memory, each row-major without gaps; null where it has none.
struct ItemsInMemory {
  const std::byte* elements = nullptr;
  const std::byte* scales = nullptr;
  const std::byte* global = nullptr;
};

/// Runs one transfer whose items, those of read_items(), have been read: decodes or copies them to their
/// place. Throws Error(argument) for a destination that is not in CPU memory, Error(malformed) as
/// expect_meant_scales(), and Error(mismatch) for a global scale that is no scale.
void place_items(const Transfer& transfer, const Catalog& catalog, const ItemsInMemory& items,
                 const TensorSpec& destination);

}  // namespace shardwright
