#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "planner/job.h"
#include "planner/names/tensor_spec.h"
#include "storage/load/load.h"

namespace shardwright {

/// What is asked for: the same on every rank, but for `reading`.
struct CheckpointLoadOptions {
  std::string model = "auto";        ///< the family, see weight_map_for()
  std::string layout = "automodel";  ///< the trainer's, see weight_map_for()
  bool strict = true;                ///< an HF tensor that no rule knows, or last layers left out, are errors
  bool allow_missing = false;        ///< a tensor that the checkpoint lacks is left as it is, and reported
  bool strict_dtypes = false;        ///< a cast that loses bits is an error; otherwise it is reported

  /// Encoded weights go into specs of floats decoded, into specs of the files' dtype as they are stored. What
  /// decodes these goes into specs beside them: the weight's name and an ending, such as "_scale_inv".
  bool packed = false;
  LoadOptions reading = {};  ///< of this rank
};

/// Loads a Hugging Face checkpoint into the trainer's tensors: read_catalog, weight_map_for, plan_load and
/// load in one call. All ranks of the job call it, each with its own parts. The memory of the specs must stay
/// valid, and unused by others, until it returns.
///
/// Nothing is written on any rank before the plans of all ranks are proven. Throws the same Error on all
/// ranks: not_found and malformed as read_catalog(), mismatch as plan_load(), naming all tensors that do not
/// fit, io and device as load(). Error::partly_written names what this rank's tensors are left with.
LoadReport load_checkpoint(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                           const Job& job = {}, const CheckpointLoadOptions& options = {});

/// Loads the trainer's own tensors, under the names that they were saved by, from what save_checkpoint() or
/// Python's sw.save wrote, on any number of ranks in any placement; or from safetensors files that have these
/// names. Of the options `model`, `layout` and `strict` have no meaning here. Objects other than tensors are
/// not read; the report's `unused` names them, as it does tensors that nobody asked for.
///
/// Checksums are compared as LoadOptions::checks says. Throws as load_checkpoint(); malformed, too, for a
/// manifest that is damaged or tells of other files than are there.
LoadReport resume_checkpoint(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                             const Job& job = {}, const CheckpointLoadOptions& options = {});

}  // namespace shardwright
