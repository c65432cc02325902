/// Dense Qwen: Qwen2, Qwen2.5 and Qwen3. Source of names and shapes: Qwen2ForCausalLM and Qwen3ForCausalLM of
/// transformers 5.23, whose names nemo-automodel 0.7.0 keeps, and the Qwen3 adapter of torchtitan 0.3.0.

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_layers(map, text, usual_layer(layout));
  if (layout == "torchtitan") add_layers(map, text, torchtitan_attention());
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> qwen3() {
  return {
      {.family = "qwen2",
       .model_types = {"qwen2"},
       .layouts = {"automodel", "transformers"},
       .weight_map = weight_map},
      {.family = "qwen3",
       .model_types = {"qwen3"},
       .layouts = {"automodel", "transformers", "torchtitan"},
       .weight_map = weight_map},
  };
}

}  // namespace shardwright
