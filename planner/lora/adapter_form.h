#pragma once

#include <optional>
#include <string>
#include <vector>

#include "planner/lora/adapter_fit.h"

namespace shardwright {

/// What kind of adapter a trainer's LoRA tensors are to be stored as.
struct AdapterAsked {
  std::string model = "auto";           ///< the family; "auto": by the names of the weights
  std::string layout = "transformers";  ///< of the model that the adapter is for, one of lora_layouts
  bool text_only = false;               ///< the model is the text model alone
  WrapperSense sense = WrapperSense::modern;
  double alpha = 1;             ///< what is added to a weight is alpha / r · B A
  bool use_rslora = false;      ///< alpha / √r · B A
  std::string base_model = {};  ///< base_model_name_or_path
  std::optional<std::string> task_type = "CAUSAL_LM";
};

/// How an adapter is stored.
struct AdapterForm {
  WeightMap map;
  std::string config;  ///< the text of adapter_config.json
};

/// The form of an adapter of these tensors. Modules of the file that several of the trainer's pairs make up
/// get a pair of the sum of their ranks, B block-diagonal, and as many times the alpha. Throws one
/// Error(mismatch) that lists all that does not make an adapter of that kind, Error(argument) for an unknown
/// model or layout.
AdapterForm adapter_form(const std::vector<NativeTensor>& tensors, const AdapterAsked& asked);

}  // namespace shardwright
