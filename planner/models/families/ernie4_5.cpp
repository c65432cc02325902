/// ERNIE 4.5, dense and with experts. Source of names and shapes: the models ernie4_5 and ernie4_5_moe of
/// transformers 5.23 and the adapters of nemo-automodel 0.7.0; neither has MTP.

#include <array>

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::string_view bias = "mlp.moe_statics.e_score_correction_bias";  // [1, experts]
constexpr std::array automodel = {Row{bias, "mlp.gate.e_score_correction_bias", "1 e -> e"}};
constexpr std::array transformers = {Row{bias, "mlp.gate.moe_statics.e_score_correction_bias"}};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  for (const char* mtp : {"mtp_block.{*}", "mtp_emb_norm.{*}", "mtp_hidden_norm.{*}", "mtp_linear_proj.{*}"})
    map.without_place.emplace_back("model." + std::string(mtp));
  add_experts(map, text, split_experts(layout));
  if (layout == "automodel") {
    add_layers(map, text, automodel);
  } else {
    add_layers(map, text, transformers);
  }
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> ernie4_5() {
  return {
      {.family = "ernie4_5",
       .model_types = {"ernie4_5"},
       .layouts = {"automodel", "transformers"},
       .weight_map = weight_map},
      {.family = "ernie4_5_moe",
       .model_types = {"ernie4_5_moe"},
       .layouts = {"automodel", "transformers"},
       .hf_marks = {"model.layers.{layer}.mlp.moe_statics.e_score_correction_bias"},
       .weight_map = weight_map},
  };
}

}  // namespace shardwright
