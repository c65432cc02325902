#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "planner/lora/adapter_request.h"

namespace shardwright {

/// What of adapter_config.json decides what a LoRA adapter adds to the weights.
struct AdapterConfig {
  std::int64_t r = 0;
  double lora_alpha = 0;
  bool use_rslora = false;

  /// Alphas of some modules, in the file's order: peft takes the first pattern, one of Python's regular
  /// expressions, that fits the end of a module's name.
  std::vector<std::pair<std::string, double>> alpha_pattern;

  std::vector<std::string> target_parameters;

  /// The sense of ParamWrappers that the writer says it has used; nothing: it says none.
  std::optional<WrapperSense> written;
};

/// Where an adapter has a weight's pair: what B A is multiplied by there follows from this and its config.
struct ScaledWeight {
  std::string weight;  ///< of the trainer
  std::string module;  ///< as adapter_config.json names it; of several, the first
  std::int64_t rank = 0;
};

/// Reads adapter_config.json of a directory, and what nemo-automodel notes beside it. Throws Error: not_found
/// where there is none; malformed for what is no JSON of the kind; mismatch, with the setting, for other than
/// a plain LoRA adapter of released weights, such as DoRA or a bias; io as InputFile.
AdapterConfig read_adapter_config(const std::filesystem::path& directory);

/// The same of a text, without the note; `file` is what messages call it.
AdapterConfig parse_adapter_config(std::string_view text, const std::string& file);

}  // namespace shardwright
