#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/lora/lora_pairs.h"
#include "planner/models/known_models.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// The layouts of models that adapter files are for:
///   * transformers: stacked experts are parameters, and have peft's ParamWrappers;
///   * huggingface: the names of the released checkpoint; a stack that is one tensor there has a
///   ParamWrapper;
///   * automodel: what nemo-automodel writes. Modules have HF's names or, of some families, its own or
///   transformers'; experts are "mlp.experts.{expert}.gate_proj" or, where HF has them stacked, as in the
///   trainer.
inline constexpr std::string_view lora_layouts[] = {"transformers", "huggingface", "automodel"};

/// How an adapter names modules: those of a model of that family, in that layout, its text part's HF names
/// beginning with `text`, with `prefix` before each. Trainers have the layout "automodel" or, where
/// nemo-automodel trains transformers' own model, that one's. Not thread-safe: it makes its tables when they
/// are asked for.
class LoraSpelling {
 public:
  LoraSpelling(const Model& family, std::string_view layout, std::string text,
               std::string_view prefix = peft_prefix);

  const Model& family() const { return *family_; }
  const std::string& layout() const { return layout_; }
  const std::string& text() const { return text_; }
  const std::string& prefix() const { return prefix_; }

  /// The table between the trainer's names and HF's. Made when first asked for.
  const WeightMap& released() const;

  /// The table between HF's names and transformers'. Made when first asked for.
  const WeightMap& transformers() const;

  /// The same for the model with all its parts, which a trainer of transformers' model has also where the
  /// file is for the text part alone. Made when first asked for.
  const WeightMap& whole_transformers() const;

  /// A module's name in the file, from that of its weight in the model.
  std::string module_of(std::string_view weight) const;

 private:
  const Model* family_;
  std::string layout_;
  std::string text_;
  std::string prefix_;
  mutable std::shared_ptr<const WeightMap> released_;
  mutable std::shared_ptr<const WeightMap> transformers_;
  mutable std::shared_ptr<const WeightMap> whole_transformers_;
};

/// The families that an adapter may be for: all for "auto", else the one that is called so, or has such a
/// model_type. Throws Error(argument) for an unknown one.
std::vector<const Model*> lora_families(const std::string& model);

/// Whether files of this layout are written for models of the family.
bool has_lora_layout(const Model& family, std::string_view layout);

/// Where the model that a file is for has the weight of a pair.
struct LoraPlace {
  std::string layout;
  std::string prefix;  ///< of the file's names

  /// That all experts are, named as in the model, each a part of the weight; none: they are modules.
  std::vector<std::string> parameters = {};
  bool is_transposed = false;  ///< the parameters are [experts, in, out], and not [experts, out, in]
  bool comes_first = false;    ///< among the parameters of its module

  /// Of the file, that the weight joins or is a part of; with {expert}.
  std::vector<std::string> modules = {};
  std::int64_t part = 0;   ///< which part of the module
  std::int64_t of = 1;     ///< how many parts it has
  std::int64_t parts = 1;  ///< how many modules, parameters or projections of one, the weight joins

  /// The rows of the module that are the weight's, if the parts are of unequal sizes, and what these rows are
  /// called in the weight, as an axis expression has them: "(query|[key]|key)" and "key".
  std::string rows = {};
  std::string own_rows = {};

  std::string kept = {};  ///< the weight, if the file has its pair as the trainer has it

  bool is_parameter() const { return !parameters.empty(); }

  /// The module, in the file, that holds parameter `number`.
  std::string stack(std::size_t number = 0) const;
};

/// The place of a weight that has LoRA; nothing if the model has no such weight.
std::optional<LoraPlace> place_of(const LoraSpelling& spelling, const std::string& weight);

/// A name with {expert} as that of one expert.
std::string of_expert(const std::string& pattern, std::int64_t expert);

/// "….lora_A.weight" of a module.
std::string lora_tensor(const std::string& module, char letter);

/// Where the file's pairs are those of a place.
struct LoraFit {
  /// Each of several joined matrices has ranks of its own. The file's modules, or the trainer's pairs, are
  /// then side by side in a pair of the sum of the ranks: A one below the other, B block-diagonal. Otherwise
  /// all have one A.
  bool spread = false;

  std::vector<std::string> wrappers;  ///< the ParamWrappers of the place's parameters
  bool legacy = false;                ///< in the sense that peft had before 0.19.1
};

/// The rank of the file's pairs at a place.
std::int64_t file_rank(const LoraPair& pair, const LoraPlace& place, bool spread);

/// Adds the rules of a pair's two tensors. `letters` may leave one of them out, as long as its name is not
/// asked for.
///
/// A ParamWrapper has lora_A.weight [experts · r, in], an expert's ranks together, and lora_B.weight [out, r
/// · experts], a rank's experts together (peft's tuners/lora/layer.py, since 0.19.1). Before, peft took each
/// parameter for [experts, in, out], so that A and B change places for those that are [experts, out, in].
void add_lora_rules(WeightMap& map, const LoraPlace& place, const LoraFit& fit, const std::string& key_of_a,
                    const std::string& key_of_b, bool stacked);

/// A map for the rules of LoRA tensors.
WeightMap lora_map(std::string_view layout);

}  // namespace shardwright
