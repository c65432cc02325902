#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "planner/lora/adapter_fit.h"
#include "storage/load/load.h"

namespace shardwright {

/// How an adapter is loaded into a trainer's tensors.
struct AdapterPlan {
  LoadPlan plan;
  std::string layout;                 ///< of the model that the adapter is for
  std::optional<WrapperSense> sense;  ///< of its ParamWrappers; nothing: it has none

  /// Tensors that are to be zero before the plan is run: it writes the blocks on their diagonals.
  std::vector<std::string> zeroed;

  /// Where the adapter has a weight's pair, which decides what B A is multiplied by.
  struct Scaled {
    std::string weight;
    std::string module;  ///< as adapter_config.json names it; of several, the first
    std::int64_t rank = 0;
  };
  std::vector<Scaled> scaled;
};

/// Plans a load of an adapter, and proves it as plan_load does. `tensors` are the trainer's, with their
/// global shapes, also those of which this rank holds nothing; `specs` what it holds. Names that are no LoRA
/// tensors' are passed over. With `strict`, tensors of the file that no pair has are an error. Reads those
/// tensors whose values must be alike, or zero. Throws one Error(mismatch) that tells what does not fit,
/// Error(argument) for an unknown model, Error(io).
AdapterPlan plan_adapter(const std::vector<NativeTensor>& tensors, const std::vector<TensorSpec>& specs,
                         const Catalog& catalog, AdapterRequest request, bool strict = true);

}  // namespace shardwright
