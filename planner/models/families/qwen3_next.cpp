/// Qwen3-Next, such as Qwen3-Next-80B-A3B. Source of names and shapes: Qwen3NextForCausalLM of transformers
/// 5.23, which has no MTP, and the adapter of nemo-automodel 0.7.0.

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, linear_attention_layer(layout));
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  map.without_place.emplace_back("mtp.{*}");
  return map;
}

}  // namespace

std::vector<Model> qwen3_next() {
  return {{.family = "qwen3_next",
           .model_types = {"qwen3_next"},
           .layouts = {"automodel", "transformers"},
           .hf_marks = {"model.layers.{layer}.linear_attn.in_proj_qkvz.weight"},
           .native_marks = {"model.layers.{layer}.linear_attn.in_proj_qkvz.weight"},
           .weight_map = weight_map}};
}

}  // namespace shardwright
