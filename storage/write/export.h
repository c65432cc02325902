#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/lora/adapter_form.h"
#include "planner/names/tensor_spec.h"
#include "planner/save/quantization.h"
#include "planner/save/rank_states.h"
#include "storage/device/device_options.h"
#include "storage/progress.h"
#include "storage/write/export_layout.h"
#include "storage/write/export_report.h"

namespace shardwright {

/// What is asked for, the same on every rank.
struct ExportRequest {
  const Catalog* template_catalog = nullptr;  ///< the template: whose names, dtypes and order; null: none
  std::string model = "auto";
  std::string layout = "automodel";
  const Quantization* quantize = nullptr;      ///< see ExportForm
  std::vector<std::string> quantized_weights;  ///< ExportForm::weights
  bool as_template = false;                    ///< see ExportForm

  /// Sets these from the name of a quantization, "template" or "none". Throws Error(argument), with the names
  /// that there are, for another one, and for weights without a rule to quantize them by.
  void set_quantization(std::string_view name, std::vector<std::string> weights);
  bool strict = true;
  std::uint64_t max_file_bytes = 5'000'000'000;  ///< of tensors; see lay_out
  std::map<std::string, int> file_numbers;       ///< HF name to file, from 1; empty: as max_file_bytes says
  std::string start_of_names = "model";          ///< of the files; see lay_out
  bool strict_dtypes = false;                    ///< see ExportForm
  const WeightMap* map = nullptr;  ///< the rules, in place of the model's and its layout's; null: those

  /// The tensors are LoRA's, and become adapter_model.safetensors, in the dtypes that they have, and
  /// adapter_config.json. All else here is passed over.
  std::optional<AdapterAsked> adapter = std::nullopt;
};

/// Step 1, on every rank: what it holds, as bytes for the coordinator. `state` says the same as the specs, in
/// the form that ranks plan by, with all descriptions (rank_states.h has it for specs that lie on no mesh).
/// Reads the values of blocks that other ranks hold the rest of, where they are, if all specs have memory.
/// Throws Error(mismatch) for tensors that cannot be read (on a CUDA device, where this build has no kernels
/// for it), Error(device) as run_export().
std::string describe_export(const std::vector<TensorSpec>& specs, const RankState& state,
                            const ExportRequest& request, const DeviceOptions& devices = {});

/// Where the values of specs without memory come from, a part at a time.
struct ValuesElsewhere {
  std::size_t bytes_at_once = 0;  ///< of values in memory; more for a row, or 128 rows of a matrix, alone

  /// Fills these, which have memory.
  std::function<void(const std::vector<TensorSpec>& parts)> fill;
};

/// The same for specs without memory. Parts of matrices must begin at a multiple of 128 rows, and have all
/// columns.
std::string describe_export(const std::vector<TensorSpec>& specs, const RankState& state,
                            const ExportRequest& request, const ValuesElsewhere& values);

struct PlannedExport {
  ExportLayout layout;
  std::vector<std::string> shares;    ///< for each rank, as bytes
  std::vector<std::string> left_out;  ///< see ExportedTensors
  bool is_refused =
      false;  ///< there is no plan, as ranks differ: run_export() throws on each of them and says in what
  std::string adapter_config;  ///< the text of adapter_config.json; empty: it is no adapter
};

/// Step 2, on one rank: the files, and who writes what. Throws one Error(mismatch) that tells what does
/// not fit, by name, or the ranks that were asked for something else. `holdings` are what the ranks said in
/// step 1.
PlannedExport plan_export(const std::vector<std::string>& holdings, const ExportRequest& request,
                          const std::filesystem::path& directory);

struct ExportWriting {
  int threads = 0;  ///< 0: as many as this process may use processors

  /// Memory between shards and files, all threads together. 0: 4 MiB a thread, and where tensors are on CUDA
  /// devices 8 MiB more for each of these, which is pinned, up to 128 MiB in all.
  std::size_t staging_bytes = 0;

  /// When run_export() returns, all that it did on the devices is done.
  DeviceOptions devices = {};

  Progress* progress = nullptr;  ///< counts bytes that this rank has to write, of elements
};

/// The list of checksums (storage/format/checksums_file.h) of an export, as bytes of the file: of what the
/// ranks have told in ExportReport::row_sums, and of the files `beside` the weights, which are in
/// `directory`. Throws Error(malformed) for bytes that no rank has told, Error as InputFile.
std::string checksums_of_export(const ExportLayout& layout, const std::vector<std::string>& row_sums,
                                const std::filesystem::path& directory,
                                const std::vector<std::string>& beside);

/// Step 3, on every rank: writes its share to its final place in the files of `directory`, which is there by
/// then, and flushes them to the device. Specs and state are those of step 1; the memory must not have
/// changed since. Other ranks write to the same files at the same time. Throws Error(io), naming file and
/// tensor, if the operating system refuses, Error(device), naming tensor and call, if a CUDA device does.
ExportReport run_export(const std::string& share, const std::vector<TensorSpec>& specs,
                        const RankState& state, const ExportRequest& request,
                        const std::filesystem::path& directory, const ExportWriting& options = {},
                        const ValuesElsewhere* values = nullptr);

}  // namespace shardwright
