#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "planner/lora/adapter_fit.h"
#include "storage/format/adapter_file.h"
#include "storage/load/load.h"

namespace shardwright {

/// How an adapter is loaded into a trainer's tensors.
struct AdapterPlan {
  LoadPlan plan;
  std::string layout;                 ///< of the model that the adapter is for
  std::optional<WrapperSense> sense;  ///< of its ParamWrappers; nothing: it has none

  /// Tensors that are to be zero before the plan is run: it writes the blocks on their diagonals.
  std::vector<std::string> zeroed;
  std::vector<ScaledWeight> scaled;
};

/// Plans a load of an adapter, and proves it as plan_load does. `tensors` are the trainer's, with their
/// global shapes, also those of which this rank holds nothing; `specs` what it holds. Names that are no LoRA
/// tensors' are passed over. With `strict`, tensors of the file that no pair has are an error. Reads those
/// tensors whose values must be alike, or zero. Throws one Error(mismatch) that tells what does not fit,
/// Error(argument) for an unknown model, Error(io).
AdapterPlan plan_adapter(const std::vector<NativeTensor>& tensors, const std::vector<TensorSpec>& specs,
                         const StoredAdapter& adapter, AdapterRequest request, bool strict = true);

}  // namespace shardwright
