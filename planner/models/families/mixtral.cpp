/// Mixtral. Source of names and shapes: MixtralForCausalLM of transformers 5.23, which nemo-automodel 0.7.0
/// trains as it is.

#include <array>

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::array router = {Row{"block_sparse_moe.gate.weight", "mlp.gate.weight"}};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, numbered_experts(layout), "block_sparse_moe.experts.");
  add_layers(map, text, router);
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> mixtral() {
  return {{.family = "mixtral",
           .model_types = {"mixtral"},
           .layouts = {"transformers"},
           .refused = {automodel_is_transformers},
           .weight_map = weight_map}};
}

}  // namespace shardwright
