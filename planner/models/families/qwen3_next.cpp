/// Qwen3-Next, such as Qwen3-Next-80B-A3B. Source of names and shapes: Qwen3NextForCausalLM of transformers
/// 5.23, which has no MTP, and the adapter of nemo-automodel 0.7.0.

#include <array>

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::array automodel = {
    Row{"linear_attn.A_log", "linear_attn._fp32_params.A_log"},
    Row{"linear_attn.dt_bias", "linear_attn._fp32_params.dt_bias"},
    Row{"mlp.shared_expert.{*}", "mlp.shared_experts.{*}"},
};
constexpr std::array transformers = {Row{"mlp.shared_expert.{*}", "mlp.shared_expert.{*}"}};
constexpr std::array<std::string_view, 3> layer = {"linear_attn.{*}", "mlp.gate.{*}",
                                                   "mlp.shared_expert_gate.{*}"};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, split_experts(layout));
  if (layout == "automodel") add_layers(map, text, automodel);
  if (layout == "transformers") add_layers(map, text, transformers);
  add_layers(map, text, layer);
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
           .takes_lora = true,
           .weight_map = weight_map}};
}

}  // namespace shardwright
