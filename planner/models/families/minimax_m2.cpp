/// MiniMax M2 and M2.1. Source of names and shapes: MiniMaxM2ForCausalLM of transformers 5.23 and the adapter
/// of nemo-automodel 0.7.0.

#include <array>

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr Row router{"block_sparse_moe.gate.weight", "mlp.gate.weight"};
constexpr std::array automodel = {
    router, Row{"block_sparse_moe.e_score_correction_bias", "mlp.gate.e_score_correction_bias"}};
constexpr std::array transformers = {
    router, Row{"block_sparse_moe.e_score_correction_bias", "mlp.e_score_correction_bias"}};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  if (layout == "transformers") leave_out_mtp_layers(map, text, catalog);
  add_experts(map, text, numbered_experts(layout), "block_sparse_moe.experts.");
  if (layout == "automodel") {
    add_layers(map, text, automodel);
  } else {
    add_layers(map, text, transformers);
  }
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> minimax_m2() {
  return {{.family = "minimax_m2",
           .model_types = {"minimax_m2"},
           .layouts = {"automodel", "transformers"},
           .weight_map = weight_map}};
}

}  // namespace shardwright
