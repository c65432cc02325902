#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/tensor_spec.h"
#include "planner/save/shared_blocks.h"
#include "planner/save/weight_numbers.h"
#include "storage/device/device_options.h"
#include "storage/write/described_export.h"

namespace shardwright {

/// Parts of a rank's tensors that are encoded, and what the ranks have agreed on for it.
struct PartsToWrite {
  std::vector<TensorSpec> specs;           ///< each a single box
  std::vector<BlockColumn> shared_scales;  ///< of all blocks that these boxes cut
  std::vector<std::uint32_t> headers;      ///< indices into Catalog::files, which this rank writes
  KnownNumbers numbers;                    ///< of all weights that the layout's rule quantizes
};

/// One rank's share of an export.
struct SharedExport {
  DescribedExport described;
  PartsToWrite parts;
};

/// Which of its boxes a rank encodes.
enum class PartsOfRank {
  written,  ///< what it is to write: between all ranks each element once
  held,     ///< all that it holds
};

/// From what plan_export() has said to this rank. Specs and state are those of describe_export(). Throws as
/// throw_refusal(), Error(malformed) for bytes that are damaged.
SharedExport shared_export(const std::string& share, const std::vector<TensorSpec>& specs,
                           const RankState& state, const ExportRequest& request,
                           const std::filesystem::path& directory, PartsOfRank which = PartsOfRank::written);

/// The plan that encodes `parts`, whose sources are the layout's tensors and whose destinations are the
/// parts, to be run from right to left.
LoadPlan plan_of_parts(const std::vector<TensorSpec>& parts, const DescribedExport& described);

/// Completes the numbers of a share whose specs have memory, plans it, and makes sure of that memory. Throws
/// as find_numbers(), Error(argument) for specs without memory.
LoadPlan plan_with_memory(SharedExport& share, const std::vector<TensorSpec>& specs,
                          const DeviceOptions& devices);

}  // namespace shardwright
