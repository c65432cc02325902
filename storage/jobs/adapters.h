#pragma once

#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "planner/job.h"
#include "planner/lora/adapter.h"
#include "planner/names/tensor_spec.h"
#include "storage/device/device_options.h"
#include "storage/load/load.h"
#include "storage/write/export_report.h"

namespace shardwright {

struct SaveAdapterOptions {
  /// Nothing: replaces an adapter that this library has written, and refuses where another one is in the
  /// directory. True: replaces any. False: replaces none.
  std::optional<bool> overwrite;

  int threads = 0;                ///< of this rank; 0: as many as this process may use processors
  std::size_t staging_bytes = 0;  ///< between tensors and the file; 0: 4 MiB a thread, more for CUDA devices
  DeviceOptions devices;          ///< for tensors on CUDA devices
};

/// Writes the trainer's LoRA tensors as adapter_model.safetensors and adapter_config.json. All ranks of the
/// job call it, each with its own parts, whose memory must not change until it returns; names that are no
/// LoRA tensors' are passed over. It is an export, with the proof of one: each rank writes its bytes to their
/// final place, and the two files get their names when all have.
///
/// Throws the same Error on all ranks, and has published nothing then: mismatch that tells what makes no
/// adapter of that kind; argument for an unknown model or layout; io, EEXIST where an adapter may not be
/// replaced.
ExportReport save_adapter(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                          const AdapterAsked& asked, const Job& job = {},
                          const SaveAdapterOptions& options = {});

/// What an adapter was, and what loading it did on this rank.
struct AdapterReport {
  LoadReport load;
  AdapterConfig config;
  std::string layout;                 ///< of the model that the adapter is for
  std::optional<WrapperSense> sense;  ///< of its ParamWrappers; nothing: it has none
  std::vector<ScaledWeight> scaled;
};

/// Plans and loads adapter_model.safetensors of `directory` into tensors in CPU memory, as
/// adapter_config.json says that it is meant. Each rank calls it by itself, with its parts. With `strict`,
/// tensors of the file that no pair has are an error. Throws Error: not_found where one of the two files is
/// missing; malformed for a config that is none; mismatch, with the setting, for other than a plain LoRA
/// adapter of released weights, such as DoRA; one mismatch that tells what does not fit; argument for an
/// unknown model, and for tensors on devices that have to be zero first; as load(). Nothing is written if the
/// plan fails.
AdapterReport load_adapter(const std::filesystem::path& directory, const std::vector<TensorSpec>& specs,
                           const AdapterRequest& request = {}, bool strict = true,
                           const LoadOptions& options = {});

}  // namespace shardwright
