#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "planner/job.h"
#include "planner/names/tensor_spec.h"
#include "storage/device/device_options.h"
#include "storage/write/export_report.h"

namespace shardwright {

/// What is asked for: the same on every rank, but for `threads`, `staging_bytes` and `devices`.
struct ExportOptions {
  /// A checkpoint whose names, dtypes, order and non-weight files are taken over; empty: none.
  std::filesystem::path template_directory = {};

  std::string model = "auto";        ///< the family, by the template, else by the native names
  std::string layout = "automodel";  ///< the trainer's, see weight_map_for()

  /// How the weights are stored that the template, or else the family's rule of names, has quantized, or that
  /// `quantized_weights` names: by one of quantizations() (planner/save/quantization.h), such as "mxfp8" or
  /// "nvfp4-modelopt"; "template": every weight in the template's encoding, with the template's scales;
  /// "none": BF16. All others get the template's dtypes; without a template the floats of a known family
  /// become BF16, and all else stays as it is.
  std::string quantization = "none";

  /// Patterns of HF names, in which * stands for any characters: exactly these matrices, and stacks of them,
  /// are quantized. Empty: as the template or the family has it.
  std::vector<std::string> quantized_weights = {};

  bool strict = true;          ///< a tensor that the template has and the ranks lack is an error
  bool strict_dtypes = false;  ///< a cast that loses bits is an error; otherwise it is reported
  std::uint64_t max_file_bytes =
      5'000'000'000;  ///< of the tensors of a file; a larger one has a file of its own

  /// Nothing: replaces a checkpoint that an export has written, and refuses where another one is in the
  /// directory, or the template. True: replaces any. False: replaces none.
  std::optional<bool> overwrite = std::nullopt;

  int threads = 0;                ///< of this rank; 0: as many as this process may use processors
  std::size_t staging_bytes = 0;  ///< between shards and files; 0: 4 MiB a thread, more for CUDA devices
  DeviceOptions devices = {};     ///< for tensors on CUDA devices
};

/// Writes the trainer's tensors as a Hugging Face checkpoint: safetensors files, their index, what the
/// template has beside its weights, and checksums. All ranks of the job call it, each with its own parts,
/// whose memory must not change until it returns. Each rank writes its bytes to their final place in the
/// final files; no tensor is gathered.
///
/// The checkpoint is there when it returns, flushed to the device; files that other programs have in the
/// directory are left alone. Without a template, a head that is the embedding's memory is not stored, as
/// transformers stores none; the report lists it as left out. The report is this rank's; `rounded` and
/// `left_out` are those of the whole export.
///
/// Throws the same Error on all ranks, and has published nothing then: mismatch that tells what does not
/// fit, by name; io with errno, naming the file, if the operating system refuses, EEXIST where something is
/// in the place, ENOSPC where there is too little of it; device, naming tensor and call.
ExportReport export_checkpoint(const std::vector<TensorSpec>& specs, const std::filesystem::path& directory,
                               const Job& job = {}, const ExportOptions& options = {});

/// What is asked for: the same on every rank, but for `threads` and `buffer_bytes`.
struct ConvertOptions {
  std::string quantization = "none";                ///< as ExportOptions has it, but "template"
  std::vector<std::string> quantized_weights = {};  ///< likewise
  std::string model = "auto";                       ///< the family, whose rule of names may count
  std::string layout = "automodel";                 ///< of a training: whose names its weights have
  std::uint64_t max_file_bytes = 5'000'000'000;     ///< of the tensors of a file
  std::optional<bool> overwrite = std::nullopt;     ///< as ExportOptions has it
  int threads = 0;                                  ///< 0: as many as this process may use processors
  std::size_t buffer_bytes = 0;                     ///< of decoded values at a time; 0: 128 MiB
};

/// Writes a Hugging Face checkpoint as another one, its weights stored as options.quantization says, under
/// the names of the tool that has the rule: from any encoding to any, or to BF16. Weights are those that the
/// source has encoded; of a source without any those that its family's releases quantize, or that are named.
/// All other tensors and files are taken over. Weights of one encoding become those of another by way of
/// BF16.
///
/// All ranks of the job call it. Each holds options.buffer_bytes of values at a time, and some staging.
/// Throws and publishes as export_checkpoint(); Error(mismatch) for a source of other kind.
ExportReport convert_checkpoint(const std::filesystem::path& source, const std::filesystem::path& destination,
                                const Job& job = {}, const ConvertOptions& options = {});

}  // namespace shardwright
