#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/tensor_spec.h"
#include "planner/save/shared_blocks.h"
#include "planner/save/weight_numbers.h"
#include "storage/write/export.h"

namespace shardwright {

/// What one rank writes: some headers, and boxes of tensors.
struct PartsToWrite {
  std::vector<TensorSpec> specs;           ///< each a single box
  std::vector<BlockColumn> shared_scales;  ///< of all blocks that these boxes cut
  std::vector<std::uint32_t> headers;      ///< indices into Catalog::files
  KnownNumbers numbers;                    ///< of all weights that the layout's rule quantises
};

/// Runs a plan, whose sources are the tensors of the layout and whose destinations are the parts, from right
/// to left, and fills in what the report says of writing. Errors as run_export().
void write_parts(const PartsToWrite& parts, const ExportLayout& layout, const LoadPlan& plan,
                 const std::filesystem::path& directory, const ExportWriting& options, ExportReport& report);

}  // namespace shardwright
