/// MiniMax M2 and M2.1. Source of names and shapes: MiniMaxM2ForCausalLM of transformers 5.23 and the adapter
/// of nemo-automodel 0.7.0.

#include <array>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

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

constexpr std::string_view sample_config = R"({
  "architectures": ["MiniMaxM2ForCausalLM"], "model_type": "minimax_m2", "num_local_experts": 4,
  "num_experts_per_tok": 2, "intermediate_size": 40})";

constexpr SampleRow norms_of_all_heads[] = {{"q_norm.weight", "heads*head_dim"},
                                            {"k_norm.weight", "kv_heads*head_dim"}};
constexpr SampleRow sample_router[] = {{"gate.weight", "experts hidden"},
                                       {"e_score_correction_bias", "experts", StoredAs::f32}};

void add_tensors(SampleTensors& tensors) {
  add_sample_ends(tensors);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    add_sample_layer(tensors, prefix, {sample_attention(), norms_of_all_heads});
    tensors.add(prefix + "block_sparse_moe.", sample_router);
    tensors.add(prefix + "block_sparse_moe.experts.{expert}.", sample_numbered_expert());
  }
}

std::vector<Sample> samples() {
  return {{.form = "fp8",
           .config = std::string(sample_config),
           .encoding = "block_fp8",
           .add_tensors = add_tensors},
          {.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> minimax_m2() {
  return {{.family = "minimax_m2",
           .model_types = {"minimax_m2"},
           .layouts = {"automodel", "transformers"},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
