#pragma once

#include <filesystem>
#include <optional>
#include <vector>

#include "planner/job.h"
#include "planner/lora/adapter_form.h"
#include "planner/names/tensor_spec.h"
#include "storage/write/export.h"

namespace shardwright {

/// Writes the trainer's LoRA tensors as adapter_model.safetensors and adapter_config.json. All ranks of the
/// job call it, each with its own parts, whose memory must not change until it returns; names that are no
/// LoRA tensors' are passed over. It is an export, with the proof of one: each rank writes its bytes to their
/// final place, and the two files get their names when all have.
///
/// `overwrite`: nothing replaces an adapter that this library has written; true replaces any, false none.
/// Throws the same Error on all ranks, and has published nothing then: mismatch that lists all that makes no
/// adapter of that kind; argument for an unknown model or layout; io, EEXIST where an adapter may not be
/// replaced.
ExportReport save_adapter(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                          const AdapterAsked& asked, const Job& job = {},
                          std::optional<bool> overwrite = std::nullopt, const ExportWriting& writing = {});

}  // namespace shardwright
