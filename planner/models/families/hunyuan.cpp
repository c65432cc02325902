/// Hunyuan, dense and with experts, and HY 3 (hy_v3). Source of names and shapes: the models
/// hunyuan_v1_dense, hunyuan_v1_moe and hy_v3 of transformers 5.23, and nemo-automodel 0.7.0, which has an
/// adapter for hy_v3 and trains the others as transformers has them. Neither has MTP.

#include <array>

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::array<std::string_view, 1> shared_mlp = {"mlp.shared_mlp.{*}"};

WeightMap dense(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

WeightMap with_experts(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, shared_mlp);
  add_layers(map, text, usual_mixture(layout));
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::array renamed = {
    Row{"mlp.router.gate.weight", "mlp.gate.weight"},
    Row{"mlp.shared_mlp.{*}", "mlp.shared_experts.{*}"},
};
constexpr std::array automodel_bias = {Row{"mlp.expert_bias", "mlp.gate.e_score_correction_bias"}};
constexpr std::array transformers_bias = {Row{"mlp.expert_bias", "mlp.e_score_correction_bias"}};

WeightMap hy_v3(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  leave_out_mtp_layers(map, text, catalog);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, renamed);
  if (layout == "automodel") {
    add_layers(map, text, automodel_bias);
  } else {
    add_layers(map, text, transformers_bias);
  }
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> hunyuan() {
  return {
      {.family = "hunyuan_v1_dense",
       .model_types = {"hunyuan_v1_dense"},
       .layouts = {"automodel", "transformers"},
       .weight_map = dense},
      {.family = "hunyuan_v1_moe",
       .model_types = {"hunyuan_v1_moe"},
       .layouts = {"transformers"},
       .refused = {automodel_is_transformers},
       .hf_marks = {"model.layers.{layer}.mlp.gate.wg.weight"},
       .weight_map = with_experts},
      {.family = "hy_v3",
       .model_types = {"hy_v3", "hy_mt2"},
       .layouts = {"automodel", "transformers"},
       .hf_marks = {"model.layers.{layer}.mlp.router.gate.weight"},
       .weight_map = hy_v3},
  };
}

}  // namespace shardwright
