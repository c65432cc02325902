#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/lora/adapter_fit.h"

namespace shardwright {

/// What is known of the model whose LoRA tensors an HF state dict has.
struct LoraStateDict {
  std::string family;
  std::int64_t experts = -1;          ///< of a layer, over all ranks; -1: as many as there are
  std::optional<std::int64_t> width;  ///< of an expert inside
  std::optional<WrapperSense> sense;  ///< of ParamWrappers; nothing: as the shapes say
};

/// The rules that make a trainer's LoRA tensors of an HF state dict's: of modules and ParamWrappers, in any
/// spelling that fit_adapter knows, peft's prefix kept. The catalog is what a rank holds of the state dict;
/// names that are no LoRA tensors' get no rules. Modules that the trainer has as several have one A for all
/// of them. `problems` of the result are to be told. Throws Error(mismatch) for what cannot be told.
AdapterFit fit_state_dict(const Catalog& hf, const LoraStateDict& asked);

/// The rules between a trainer's LoRA tensors of these names and those of an HF state dict, its text part's
/// names beginning with `text`: a module for each expert and projection, as nemo-automodel names them. Names
/// that the family has no place for get no rules.
WeightMap lora_map_of_names(const std::vector<std::string>& keys, const std::string& family,
                            const std::string& text);

}  // namespace shardwright
