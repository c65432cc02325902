/// Qwen3-Next, such as Qwen3-Next-80B-A3B. Source of names and shapes: Qwen3NextForCausalLM of transformers
/// 5.23, which has no MTP, and the adapter of nemo-automodel 0.7.0.

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, linear_attention_layer(layout));
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  map.without_place.emplace_back("mtp.{*}");
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", "num_experts": 4,
  "num_experts_per_tok": 2, "moe_intermediate_size": 40, "shared_expert_intermediate_size": 28,
  "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 4,
  "linear_value_head_dim": 6, "linear_conv_kernel_dim": 4,
  "layer_types": ["linear_attention", "full_attention"]})";

constexpr SampleRow linear_projections[] = {
    {"in_proj_qkvz.weight",
     "2*linear_num_key_heads*linear_key_head_dim+2*linear_num_value_heads*linear_value_head_dim hidden",
     StoredAs::scaled},
    {"in_proj_ba.weight", "2*linear_num_value_heads hidden"},
};

void add_tensors(SampleTensors& tensors) {
  add_sample_ends(tensors);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    const bool is_linear = tensors.kind("layer_types", layer) == "linear_attention";
    if (is_linear) tensors.add(prefix + "linear_attn.", linear_projections);
    add_sample_gated_layer(tensors, prefix, is_linear);
    add_sample_mixture(tensors, prefix + "mlp.");
    add_sample_gated_shared_expert(tensors, prefix + "mlp.");
  }
  add_sample_gated_layer(tensors, "mtp.layers.0.", /*is_linear=*/false);
  add_sample_mixture(tensors, "mtp.layers.0.mlp.");
  add_sample_gated_shared_expert(tensors, "mtp.layers.0.mlp.");
  tensors.add("mtp.", sample_mtp_beside());
}

std::vector<Sample> samples() { return bf16_and_block_fp8(sample_config, add_tensors); }

}  // namespace

std::vector<Model> qwen3_next() {
  return {{.family = "qwen3_next",
           .model_types = {"qwen3_next"},
           .layouts = {"automodel", "transformers"},
           .hf_marks = {"model.layers.{layer}.linear_attn.in_proj_qkvz.weight"},
           .native_marks = {"model.layers.{layer}.linear_attn.in_proj_qkvz.weight"},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
