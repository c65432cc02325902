/// Laguna, such as Laguna XS.2. Source of names and shapes: LagunaForCausalLM of transformers 5.23 and the
/// adapter of nemo-automodel 0.7.0, which both call the shared expert, and the router's bias, otherwise than
/// the files. Layers may have other numbers of heads; a softplus gate follows attention.

#include <array>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array mixture = {
    Row{"mlp.experts.e_score_correction_bias", "mlp.gate.e_score_correction_bias"},
    Row{"mlp.gate.weight", "mlp.gate.weight"},
    Row{"mlp.shared_expert.{*}", "mlp.shared_experts.{*}"},
};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, mixture);
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["LagunaForCausalLM"], "model_type": "laguna", "num_experts": 4, "num_experts_per_tok": 2,
  "moe_intermediate_size": 40, "shared_expert_intermediate_size": 56, "gating": "per-head",
  "layer_types": ["full_attention", "sliding_attention"], "mlp_layer_types": ["dense", "sparse"]})";

constexpr SampleRow gate[] = {{"g_proj.weight", "heads hidden", StoredAs::scaled}};
constexpr SampleRow router_bias[] = {{"experts.e_score_correction_bias", "experts", StoredAs::f32}};

void add_tensors(SampleTensors& tensors) {
  add_sample_ends(tensors);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    add_sample_layer(tensors, prefix, {sample_attention(), sample_head_norms(), gate});
    if (tensors.kind("mlp_layer_types", layer) == "dense") {
      tensors.add(prefix + "mlp.", sample_mlp());
      continue;
    }
    add_sample_mixture(tensors, prefix + "mlp.");
    tensors.add(prefix + "mlp.", router_bias);
    tensors.add(prefix + "mlp.shared_expert.", sample_shared_expert());
  }
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> laguna() {
  return {{.family = "laguna",
           .model_types = {"laguna"},
           .layouts = {"automodel", "transformers"},
           .hf_marks = {".mlp.experts.e_score_correction_bias"},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
