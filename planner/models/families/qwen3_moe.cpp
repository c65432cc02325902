/// Qwen3-MoE, such as Qwen3-30B-A3B. Source of names and shapes: Qwen3MoeForCausalLM of transformers 5.23 and
/// the Qwen3 adapters of nemo-automodel 0.7.0 and torchtitan 0.3.0. Some layers may have a dense MLP.

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  if (layout == "torchtitan") add_layers(map, text, torchtitan_attention());
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> qwen3_moe() {
  return {{.family = "qwen3_moe",
           .model_types = {"qwen3_moe"},
           .layouts = {"automodel", "transformers", "torchtitan"},
           .weight_map = weight_map}};
}

}  // namespace shardwright
