#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/names/weight_map.h"

namespace shardwright {

/// What peft puts before the names of a model's modules.
inline constexpr std::string_view peft_prefix = "base_model.model.";

/// How the name of a module's weight, or of its A or B, ends. Names of stacked experts do not.
inline constexpr std::string_view weight_end = ".weight";

/// What the name of a trainer's LoRA tensor says.
struct LoraName {
  std::string prefix;  ///< peft's, or empty
  std::string weight;  ///< FQN of the weight that it is for; of stacked experts, as layout "automodel" has it
  char letter = 'A';   ///< or 'B'
};

/// Reads "<module>.lora_A.weight", or of stacked experts "<module>.lora_gate_and_up_A". Nothing for any other
/// name.
std::optional<LoraName> lora_name_of(std::string_view key);

/// The name of a trainer's LoRA tensor: the inverse, without the prefix.
std::string lora_key(const std::string& weight, char letter);

/// The A and B of one weight of the trainer: scaling · B A is added to it.
///
/// A module has A [r, in] and B [out, r]; stacked experts have A [experts, in, r] and B [experts, r, out].
struct LoraPair {
  std::string weight;
  NativeTensor a;
  NativeTensor b;

  bool stacked() const { return a.stacked; }
  std::int64_t experts() const { return stacked() ? a.shape[0] : 1; }
  std::int64_t rank() const { return a.shape[stacked() ? 2 : 0]; }
  std::int64_t inputs() const { return a.shape[1]; }
  std::int64_t outputs() const { return b.shape[stacked() ? 2 : 0]; }
};

/// The pairs among a trainer's tensors, in the order of their first tensors. All else is passed over. Adds to
/// `problems` what has no partner, several, or one of another shape, and that there are none.
std::vector<LoraPair> lora_pairs(const std::vector<NativeTensor>& tensors,
                                 std::vector<std::string>& problems);

/// What the parts of a weight of stacked experts are called one by one: "gate_proj" and "up_proj" of
/// "gate_and_up_projs".
std::vector<std::string> projection_names(std::string_view stack);

}  // namespace shardwright
