#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "planner/job.h"
#include "storage/write/export_report.h"

namespace shardwright {

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
