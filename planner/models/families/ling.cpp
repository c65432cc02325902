/// Ling 2 and Ring 2. Source of names and shapes: the adapter ling_v2 of nemo-automodel 0.7.0.
/// transformers 5.23 has no such model; the modules of the release's own code have the names of the files.

#include <array>

#include "planner/models/config.h"
#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::string_view fused = "attention.query_key_value.weight";
constexpr std::array automodel = {
    Row{fused, "self_attn.q_proj.weight", "([query]|key|key) i -> query i"},
    Row{fused, "self_attn.k_proj.weight", "(query|[key]|key) i -> key i"},
    Row{fused, "self_attn.v_proj.weight", "(query|key|[key]) i -> key i"},
    Row{"attention.dense.{*}", "self_attn.o_proj.{*}"},
    Row{"attention.query_layernorm.{*}", "self_attn.q_norm.{*}"},
    Row{"attention.key_layernorm.{*}", "self_attn.k_norm.{*}"},
    Row{"mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias"},
};
constexpr std::array<std::string_view, 1> layer = {"final_layernorm.{*}"};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  TextModel text = text_model(layout);
  text.hf_embedding = "word_embeddings.weight";
  const auto heads = number_in_config(catalog, "num_attention_heads");
  const auto width = number_in_config(catalog, "head_dim");
  if (heads && width) map.sizes.emplace("query", *heads * *width);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, automodel);
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  add_layers(map, text, mtp_names());
  add_layers(map, text, layer);
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> ling() {
  return {{.family = "bailing_moe_v2",
           .model_types = {"bailing_moe_v2", "bailing_moe"},
           .layouts = {"automodel"},
           .hf_marks = {"model.layers.{layer}.attention.query_key_value.weight"},
           .weight_map = weight_map}};
}

}  // namespace shardwright
