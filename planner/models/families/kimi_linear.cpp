/// Kimi Linear. Source of names and shapes: KimiLinearForCausalLM of transformers 5.23 and the adapter of
/// nemo-automodel 0.7.0, which keeps the three convolutions apart.

#include <array>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array mixture = {
    Row{"block_sparse_moe.gate.{*}", "mlp.gate.{*}"},
    Row{"block_sparse_moe.shared_experts.{*}", "mlp.shared_experts.{*}"},
};
constexpr std::array automodel = {
    Row{"self_attn.A_log", "self_attn._fp32_params.A_log"},
    Row{"self_attn.dt_bias", "self_attn._fp32_params.dt_bias"},
};
constexpr std::array transformers = {
    Row{"self_attn.A_log", "self_attn.forget_gate.A_log"},
    Row{"self_attn.dt_bias", "self_attn.forget_gate.dt_bias"},
    Row{"self_attn.f_a_proj.{*}", "self_attn.forget_gate.f_a_proj.{*}"},
    Row{"self_attn.f_b_proj.{*}", "self_attn.forget_gate.f_b_proj.{*}"},
    Row{"self_attn.q_conv1d.weight", "self_attn.conv1d.weight", "o 1 t -> (0/3 o) 1 t"},
    Row{"self_attn.k_conv1d.weight", "self_attn.conv1d.weight", "o 1 t -> (1/3 o) 1 t"},
    Row{"self_attn.v_conv1d.weight", "self_attn.conv1d.weight", "o 1 t -> (2/3 o) 1 t"},
};
/// transformers 5.23 stores the dense layers' MLP under this name, too.
constexpr std::array dense_as_saved = {
    Row{"block_sparse_moe.gate_proj.weight", "mlp.gate_proj.weight"},
    Row{"block_sparse_moe.up_proj.weight", "mlp.up_proj.weight"},
    Row{"block_sparse_moe.down_proj.weight", "mlp.down_proj.weight"},
};
constexpr std::array dense = {
    Row{"mlp.gate_proj.weight", "mlp.gate_proj.weight"},
    Row{"mlp.up_proj.weight", "mlp.up_proj.weight"},
    Row{"mlp.down_proj.weight", "mlp.down_proj.weight"},
};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, numbered_experts(layout), "block_sparse_moe.experts.");
  add_layers(map, text, mixture);
  if (layout == "automodel") {
    add_layers(map, text, automodel);
  } else {
    add_layers(map, text, transformers);
  }
  add_layers(map, text, dense);
  add_layers(map, text, dense_as_saved, /*alternative=*/1);
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["KimiLinearForCausalLM"], "model_type": "kimi_linear", "num_experts": 4,
  "num_key_value_heads": 4, "head_dim": null, "q_lora_rank": 36,
  "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
  "moe_intermediate_size": 40, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
  "num_nextn_predict_layers": 0,
  "linear_attn_config": {"full_attn_layers": [2], "kda_layers": [1], "head_dim": 8, "num_heads": 3,
  "short_conv_kernel_size": 4},
  "layer_types": ["linear_attention", "full_attention"]})";

constexpr SampleRow linear_attention[] = {
    {"A_log", "1 1 num_heads 1"},
    {"b_proj.weight", "num_heads hidden"},
    {"dt_bias", "num_heads*head_dim"},
    {"f_a_proj.weight", "head_dim hidden"},
    {"f_b_proj.weight", "num_heads*head_dim head_dim"},
    {"g_a_proj.weight", "head_dim hidden"},
    {"g_b_proj.weight", "num_heads*head_dim head_dim"},
    {"q_conv1d.weight", "num_heads*head_dim 1 short_conv_kernel_size"},
    {"k_conv1d.weight", "num_heads*head_dim 1 short_conv_kernel_size"},
    {"v_conv1d.weight", "num_heads*head_dim 1 short_conv_kernel_size"},
    {"q_proj.weight", "num_heads*head_dim hidden"},
    {"k_proj.weight", "num_heads*head_dim hidden"},
    {"v_proj.weight", "num_heads*head_dim hidden"},
    {"o_norm.weight", "head_dim"},
    {"o_proj.weight", "hidden num_heads*head_dim"},
};
constexpr SampleRow sample_router[] = {{"gate.weight", "experts hidden"},
                                       {"gate.e_score_correction_bias", "experts", StoredAs::f32}};

void add_tensors(SampleTensors& tensors) {
  add_sample_ends(tensors);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    if (tensors.kind("layer_types", layer) == "linear_attention") {
      add_sample_layer(tensors, prefix, {});
      tensors.add(prefix + "self_attn.", linear_attention, "linear_attn_config");
    } else {
      add_sample_layer(tensors, prefix, {sample_latent_attention()});
    }
    if (layer < tensors.number("first_k_dense_replace")) {
      tensors.add(prefix + "mlp.", sample_mlp());
      continue;
    }
    tensors.add(prefix + "block_sparse_moe.", sample_router);
    tensors.add(prefix + "block_sparse_moe.experts.{expert}.", sample_numbered_expert());
    tensors.add(prefix + "block_sparse_moe.shared_experts.", sample_shared_expert());
  }
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> kimi_linear() {
  return {{.family = "kimi_linear",
           .model_types = {"kimi_linear", "kimi_linear_48b_a3b"},
           .layouts = {"automodel", "transformers"},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
