#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace shardwright {

/// The senses of ParamWrappers: modern is peft's since 0.19.1, legacy that of earlier releases.
enum class WrapperSense { modern, legacy };

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

/// What an adapter is expected to be.
struct AdapterRequest {
  std::string model = "auto";           ///< the family; "auto": any of which the file has names
  std::optional<WrapperSense> sense;    ///< nothing: as the shapes say, and where these fit both, `written`
  std::optional<WrapperSense> written;  ///< that adapter_config.json says; load_adapter() sets it
  std::vector<std::string> target_parameters;                 ///< of adapter_config.json, set likewise
  std::vector<std::string> prefixes = {"base_model.model."};  ///< that modules' names may have
  std::string path;                                           ///< of the file, for messages
  std::string name;                                           ///< of the file, for messages
};

/// What kind of adapter a trainer's LoRA tensors are to be stored as.
struct AdapterAsked {
  std::string model = "auto";  ///< the family; "auto": by the names of the weights

  /// Of the model that the adapter is for: "transformers", "huggingface" (the released names) or "automodel"
  /// (as nemo-automodel writes it).
  std::string layout = "transformers";

  bool text_only = false;  ///< the model is the text model alone
  WrapperSense sense = WrapperSense::modern;
  double alpha = 1;             ///< what is added to a weight is alpha / r · B A
  bool use_rslora = false;      ///< alpha / √r · B A
  std::string base_model = {};  ///< base_model_name_or_path
  std::optional<std::string> task_type = "CAUSAL_LM";
};

}  // namespace shardwright
