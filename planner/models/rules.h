#pragma once

#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {

/// Whether the name of any tensor begins so.
bool any_begins(const Catalog& catalog, std::string_view prefix);

/// A row of a layout's table, its names without the prefixes of the section that it stands in.
struct Row {
  std::string_view hf;
  std::string_view native;
  std::string_view axes = {};        ///< an axis expression; empty: the HF tensor is the native one
  bool only_read = false;            ///< see Rule
  std::string_view multiplier = {};  ///< HF name of what multiplies; see Rule
};

/// The rows as rules, with these prefixes. A catch-all row is not `known`: see Rule.
void add_rules(std::vector<Rule>& rules, std::span<const Row> rows, std::string_view hf_prefix,
               std::string_view native_prefix, bool known = true, int alternative = 0);

/// Names that are the same on both sides, but for the prefixes.
void add_rules(std::vector<Rule>& rules, std::span<const std::string_view> names, std::string_view hf_prefix,
               std::string_view native_prefix, bool known = true);

/// Why nemo-automodel's layout is refused where it has no model of its own.
inline constexpr std::pair<std::string_view, std::string_view> automodel_is_transformers{
    "automodel", "nemo-automodel trains transformers' own model of it: pass layout=\"transformers\""};

// --- a text model ---

/// What the names of a text model begin with, in the files and in the trainer.
struct TextModel {
  std::string_view layout;
  std::string hf = "model.";
  std::string native = "model.";  ///< empty in layout "torchtitan"
  std::string hf_embedding = "embed_tokens.weight";
  std::string hf_head = "lm_head.weight";
  std::string native_head = "lm_head.weight";

  std::string hf_layer() const { return hf + "layers.{layer}."; }
  std::string native_layer() const { return native + "layers.{layer}."; }
};

/// That of this layout, with the usual names.
TextModel text_model(std::string_view layout);

/// What the names of the text part of a model with vision begin with: "model.language_model.", or "model."
/// where the checkpoint is a text model alone.
std::string vision_models_text(const Catalog& catalog);

/// The same of the trainer's names: where config.json is of the text model alone ("qwen3_5_text"), the
/// trainer has made that, whatever the files' names begin with.
std::string vision_models_native_text(const Catalog& catalog);

/// Rows of each layer.
void add_layers(WeightMap& map, const TextModel& text, std::span<const Row> rows, int alternative = 0);
void add_layers(WeightMap& map, const TextModel& text, std::span<const std::string_view> names);

/// Norms, dense MLP and, but for "torchtitan", attention, which there is `torchtitan_attention` or the
/// family's own. Rows of a family's own stand before these; two rows with one native name are parts of one
/// tensor.
std::span<const Row> usual_layer(std::string_view layout);

/// Router and shared experts.
std::span<const Row> usual_mixture(std::string_view layout);
std::span<const Row> torchtitan_attention();
std::span<const Row> torchtitan_latent_attention();  ///< DeepSeek's

/// Linear attention, router and gated shared expert of Qwen3-Next and Qwen3.5, in "automodel" and
/// "transformers".
std::span<const Row> linear_attention_layer(std::string_view layout);

/// Embedding, last norm and head, whose second alternative is the embedding unless config.json says that they
/// are not tied; the names that stay as they are; and where all of them stand in a pipeline. Comes after the
/// layers' rows.
void add_outside_layers(WeightMap& map, const TextModel& text, const Catalog& catalog);

/// Experts of each layer, below these modules.
void add_experts(WeightMap& map, const TextModel& text, std::span<const Row> rows,
                 std::string_view hf_module = "mlp.experts.", int alternative = 0);

/// How each layout holds gated experts that are HF matrices of their own: "{expert}.gate_proj.weight",
/// "{expert}.up_proj.weight" and "{expert}.down_proj.weight".
std::span<const Row> split_experts(std::string_view layout);

/// The same where the files call them "{expert}.w1.weight", "{expert}.w3.weight" and "{expert}.w2.weight".
std::span<const Row> numbered_experts(std::string_view layout);

/// The same for experts that the file has stacked: "gate_up_proj" [experts, gates and ups, hidden] and
/// "down_proj" [experts, hidden, intermediate].
std::span<const Row> stacked_experts(std::string_view layout);

// --- layers after the last ---

/// What a layer of multi-token prediction has beside a decoder layer's tensors, where it is numbered on from
/// the decoder's last.
std::span<const std::string_view> mtp_names();

/// HF names of the layers from config.json's num_hidden_layers on have no place in this layout.
void leave_out_mtp_layers(WeightMap& map, const TextModel& text, const Catalog& catalog);

}  // namespace shardwright
