#pragma once

#include <cstddef>
#include <vector>

#include "planner/save/weight_numbers.h"
#include "storage/write/export_layout.h"

namespace shardwright {

/// All bytes of a small tensor that the export makes. `numbers` has the largest magnitudes of the weights
/// with a global scale.
std::vector<std::byte> bytes_of_made(const Made& made, const ExportLayout& layout,
                                     const KnownNumbers& numbers);

}  // namespace shardwright
