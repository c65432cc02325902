/// Nemotron 3 and other Nemotron-H. Source of names and shapes: NemotronHForCausalLM of transformers 5.23,
/// which has no MTP, and the adapter nemotron_v3 of nemo-automodel 0.7.0. Experts have no gate.

#include <array>
#include <string>

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::array automodel = {
    Row{"mixer.experts.{expert}.up_proj.weight", "mixer.experts.gate_and_up_projs", "o i -> {expert} i o"},
    Row{"mixer.experts.{expert}.down_proj.weight", "mixer.experts.down_projs", "o i -> {expert} i o"},
    Row{"mixer.A_log", "mixer._fp32_params.A_log"},
    Row{"mixer.dt_bias", "mixer._fp32_params.dt_bias"},
    Row{"mixer.D", "mixer._fp32_params.D"},
};
constexpr std::array transformers = {
    Row{"mixer.experts.{expert}.up_proj.weight", "mixer.experts.up_proj", "o i -> {expert} o i"},
    Row{"mixer.experts.{expert}.down_proj.weight", "mixer.experts.down_proj", "o i -> {expert} o i"},
};
constexpr std::array<std::string_view, 2> layer = {"norm.{*}", "mixer.{*}"};
constexpr std::array<std::string_view, 4> mtp_layer = {"enorm.{*}", "hnorm.{*}", "eh_proj.{*}",
                                                       "final_layernorm.{*}"};

constexpr std::array around_automodel = {
    Row{"backbone.embeddings.weight", "model.embed_tokens.weight"},
    Row{"backbone.norm_f.weight", "model.norm.weight"},
    Row{"lm_head.weight", "lm_head.weight"},
};
/// What NVIDIA's own code has stored, which nemo-automodel reads, too.
constexpr std::array singular = {Row{"backbone.embedding.weight", "model.embed_tokens.weight"}};
constexpr std::array around_transformers = {
    Row{"backbone.embeddings.weight", "model.embeddings.weight"},
    Row{"backbone.norm_f.weight", "model.norm_f.weight"},
    Row{"lm_head.weight", "lm_head.weight"},
};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const bool is_automodel = layout == "automodel";
  // transformers may have stored the model under the names that its own modules have.
  if (any_begins(catalog, "model.layers.") && !any_begins(catalog, "backbone."))
    map.dialect = {{"backbone.", "model."}};
  const auto add_layer = [&](const std::string& hf, const std::string& native) {
    add_rules(map.rules, is_automodel ? std::span<const Row>(automodel) : transformers, hf, native);
    add_rules(map.rules, layer, hf, native);
  };
  add_layer("backbone.layers.{layer}.", "model.layers.{layer}.");
  if (is_automodel) {
    add_layer("mtp.layers.{layer}.", "mtp.layers.{layer}.");
    add_rules(map.rules, mtp_layer, "mtp.layers.{layer}.", "mtp.layers.{layer}.");
  } else {
    map.without_place.emplace_back("mtp.{*}");
  }
  add_rules(map.rules, is_automodel ? std::span<const Row>(around_automodel) : around_transformers, "", "");
  if (is_automodel) add_rules(map.rules, singular, "", "", /*known=*/true, /*alternative=*/1);
  map.layers.emplace_back("backbone.layers.{layer}.{*}");
  for (const char* after : {"backbone.norm_f.{*}", "lm_head.{*}", "mtp.{*}"})
    map.after_layers.emplace_back(after);
  return map;
}

}  // namespace

std::vector<Model> nemotron_h() {
  return {{.family = "nemotron_h",
           .model_types = {"nemotron_h"},
           .layouts = {"automodel", "transformers"},
           .hf_marks = {"backbone.layers.{layer}.mixer.experts.{*}"},
           .native_marks = {"model.layers.{layer}.mixer.experts.{*}"},
           .text_names = {"backbone.", "model."},
           .weight_map = weight_map}};
}

}  // namespace shardwright
