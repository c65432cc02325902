/// GLM-4.5, 4.6 and 4.7 (glm4_moe), their small one (glm4_moe_lite) and GLM-5 (glm_moe_dsa). Source of names
/// and shapes: the models of those names in transformers 5.23, which have no MTP, and the adapters of
/// nemo-automodel 0.7.0.

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  if (layout == "transformers") leave_out_mtp_layers(map, text, catalog);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  add_layers(map, text, mtp_names());
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> glm4_moe() {
  std::vector<Model> models;
  for (const std::string_view family : {"glm4_moe", "glm4_moe_lite", "glm_moe_dsa"}) {
    models.push_back({.family = family,
                      .model_types = {family},
                      .layouts = {"automodel", "transformers"},
                      .weight_map = weight_map});
  }
  return models;
}

}  // namespace shardwright
