/// GLM 5 Next, such as GLM 5.3 Flash: vision, linear and sparse attention, and hyper-connections. Source of
/// names and shapes: the model glm5_next of transformers 5.23, which joins the three convolutions, and the
/// adapter of nemo-automodel 0.7.0, which keeps them apart and holds some parameters in F32. Neither trains
/// layers of multi-token prediction.

#include <array>
#include <string>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array<std::string_view, 1> vision = {"model.visual.{*}"};
constexpr std::array automodel = {
    Row{"hc_attn_fn", "attn_hc.fn"},
    Row{"hc_attn_base", "attn_hc._fp32_params.base"},
    Row{"hc_attn_scale", "attn_hc._fp32_params.scale"},
    Row{"hc_ffn_fn", "ffn_hc.fn"},
    Row{"hc_ffn_base", "ffn_hc._fp32_params.base"},
    Row{"hc_ffn_scale", "ffn_hc._fp32_params.scale"},
    Row{"self_attn.A_log", "self_attn._fp32_params.A_log"},
    Row{"self_attn.dt_bias", "self_attn._fp32_params.dt_bias"},
};
constexpr std::array transformers = {
    Row{"hc_attn_{*}", "attn_hc.{*}"},
    Row{"hc_ffn_{*}", "ffn_hc.{*}"},
    Row{"self_attn.A_log", "self_attn.forget_gate.A_log"},
    Row{"self_attn.dt_bias", "self_attn.forget_gate.dt_bias"},
    Row{"self_attn.f_a_proj.{*}", "self_attn.forget_gate.f_a_proj.{*}"},
    Row{"self_attn.f_b_proj.{*}", "self_attn.forget_gate.f_b_proj.{*}"},
    Row{"self_attn.q_conv1d.weight", "self_attn.conv1d.weight", "o 1 t -> (0/3 o) 1 t"},
    Row{"self_attn.k_conv1d.weight", "self_attn.conv1d.weight", "o 1 t -> (1/3 o) 1 t"},
    Row{"self_attn.v_conv1d.weight", "self_attn.conv1d.weight", "o 1 t -> (2/3 o) 1 t"},
};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  TextModel text = text_model(layout);
  text.hf = text.native = "model.language_model.";
  add_experts(map, text, split_experts(layout));
  if (layout == "automodel") {
    add_layers(map, text, automodel);
  } else {
    add_layers(map, text, transformers);
  }
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  add_rules(map.rules, vision, "", "");
  leave_out_mtp_layers(map, text, catalog);
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["Glm5NextForConditionalGeneration"], "model_type": "glm5_next",
  "text_config": {"model_type": "glm5_next_text", "num_key_value_heads": 4, "head_dim": null,
  "q_lora_rank": 36, "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 0, "v_head_dim": 6,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 40,
  "index_head_dim": 6, "index_n_heads": 2, "index_topk": 8, "index_kpool": 4, "linear_head_dim": 8,
  "linear_num_heads": 3, "linear_conv_kernel_dim": 4, "hc_mult": 2,
  "layer_types": ["linear_attention", "indexed_attention"], "mlp_layer_types": ["dense", "sparse"],
  "indexer_types": ["full", "full"]},
  "vision_config": {"model_type": "glm5_next_vision", "depth": 1, "hidden_size": 12, "intermediate_size": 20,
  "num_heads": 2, "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
  "out_hidden_size": 48, "projection_intermediate_size": 28}})";

constexpr auto scaled = StoredAs::scaled;
constexpr auto f32 = StoredAs::f32;
constexpr SampleRow hyper_connections[] = {
    {"hc_attn_fn", "2*hc_mult+hc_mult*hc_mult hc_mult*hidden"},
    {"hc_attn_base", "2*hc_mult+hc_mult*hc_mult", f32},
    {"hc_attn_scale", "3", f32},
    {"hc_ffn_fn", "2*hc_mult+hc_mult*hc_mult hc_mult*hidden"},
    {"hc_ffn_base", "2*hc_mult+hc_mult*hc_mult", f32},
    {"hc_ffn_scale", "3", f32},
};
constexpr SampleRow linear_attention[] = {
    {"A_log", "linear_num_heads", f32},
    {"dt_bias", "linear_num_heads*linear_head_dim", f32},
    {"b_proj.weight", "linear_num_heads hidden"},
    {"f_a_proj.weight", "linear_head_dim hidden"},
    {"f_b_proj.weight", "linear_num_heads*linear_head_dim linear_head_dim"},
    {"g_a_proj.weight", "linear_head_dim hidden"},
    {"g_b_proj.weight", "linear_num_heads*linear_head_dim linear_head_dim"},
    {"q_conv1d.weight", "linear_num_heads*linear_head_dim 1 linear_conv_kernel_dim"},
    {"k_conv1d.weight", "linear_num_heads*linear_head_dim 1 linear_conv_kernel_dim"},
    {"v_conv1d.weight", "linear_num_heads*linear_head_dim 1 linear_conv_kernel_dim"},
    {"q_proj.weight", "linear_num_heads*linear_head_dim hidden"},
    {"k_proj.weight", "linear_num_heads*linear_head_dim hidden"},
    {"v_proj.weight", "linear_num_heads*linear_head_dim hidden"},
    {"o_norm.weight", "linear_head_dim"},
    {"o_proj.weight", "hidden linear_num_heads*linear_head_dim"},
};
constexpr SampleRow sparse_attention[] = {
    {"q_a_proj.weight", "q_lora_rank hidden", scaled},
    {"q_a_layernorm.weight", "q_lora_rank"},
    {"q_b_proj.weight", "heads*qk_nope_head_dim+heads*qk_rope_head_dim q_lora_rank", scaled},
    {"kv_a_proj_with_mqa.weight", "kv_lora_rank+qk_rope_head_dim hidden", scaled},
    {"kv_a_layernorm.weight", "kv_lora_rank"},
    {"kv_b_proj.weight", "heads*qk_nope_head_dim+heads*v_head_dim kv_lora_rank"},
    {"o_proj.weight", "hidden heads*v_head_dim", scaled},
    {"indexer.index_kpool_compress_ape", "index_kpool index_head_dim"},
    {"indexer.index_kpool_compress_gate", "index_head_dim hidden"},
    {"indexer.k_norm.weight", "index_head_dim"},
    {"indexer.k_norm.bias", "index_head_dim"},
    {"indexer.weights_proj.weight", "index_n_heads hidden"},
    {"indexer.wk.weight", "index_head_dim hidden"},
    {"indexer.wq_b.weight", "index_n_heads*index_head_dim q_lora_rank"},
};
constexpr SampleRow router_bias[] = {{"gate.e_score_correction_bias", "experts", f32}};
constexpr SampleRow around_vision[] = {
    {"patch_embed.proj.weight", "hidden_size in_channels temporal_patch_size patch_size patch_size"},
    {"patch_embed.proj.bias", "hidden_size"},
    {"post_layernorm.weight", "hidden_size"},
    {"downsample.weight", "out_hidden_size hidden_size spatial_merge_size spatial_merge_size"},
    {"downsample.bias", "out_hidden_size"},
    {"merger.proj.weight", "out_hidden_size out_hidden_size"},
    {"merger.post_projection_norm.weight", "out_hidden_size"},
    {"merger.post_projection_norm.bias", "out_hidden_size"},
    {"merger.gate_proj.weight", "projection_intermediate_size out_hidden_size"},
    {"merger.up_proj.weight", "projection_intermediate_size out_hidden_size"},
    {"merger.down_proj.weight", "out_hidden_size projection_intermediate_size"},
};
constexpr SampleRow vision_block[] = {
    {"norm1.weight", "hidden_size"},
    {"norm2.weight", "hidden_size"},
    {"attn.qkv.weight", "3*hidden_size hidden_size"},
    {"attn.qkv.bias", "3*hidden_size"},
    {"attn.proj.weight", "hidden_size hidden_size"},
    {"attn.proj.bias", "hidden_size"},
    {"mlp.gate_proj.weight", "intermediate_size hidden_size"},
    {"mlp.gate_proj.bias", "intermediate_size"},
    {"mlp.up_proj.weight", "intermediate_size hidden_size"},
    {"mlp.up_proj.bias", "intermediate_size"},
    {"mlp.down_proj.weight", "hidden_size intermediate_size"},
    {"mlp.down_proj.bias", "hidden_size"},
};

void add_vision(SampleTensors& tensors) {
  constexpr std::string_view part = "vision_config";
  const std::int64_t head = tensors.number("hidden_size", part) / tensors.number("num_heads", part);
  tensors.add("model.visual.", around_vision, part);
  for (std::int64_t k = 0; k < tensors.number("depth", part); ++k) {
    const std::string prefix = "model.visual.blocks." + std::to_string(k) + ".";
    tensors.add(prefix, vision_block, part);
    for (const char* norm : {"attn.q_norm.weight", "attn.k_norm.weight"})
      tensors.add(prefix + norm, DType::BF16, {head});
  }
}

void add_tensors(SampleTensors& tensors) {
  const std::string model = "model.language_model.";
  add_sample_ends(tensors, model);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix(model, layer);
    if (tensors.kind("layer_types", layer) == "linear_attention") {
      add_sample_layer(tensors, prefix, {linear_attention});
    } else {
      add_sample_layer(tensors, prefix, {sparse_attention});
    }
    tensors.add(prefix, hyper_connections);
    if (tensors.kind("mlp_layer_types", layer) == "dense") {
      tensors.add(prefix + "mlp.", sample_mlp());
      continue;
    }
    add_sample_mixture(tensors, prefix + "mlp.");
    tensors.add(prefix + "mlp.", router_bias);
    tensors.add(prefix + "mlp.shared_experts.", sample_shared_expert());
  }
  add_vision(tensors);
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors},
          {.form = "fp8",
           .config = std::string(sample_config),
           .encoding = "block_fp8",
           .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> glm5_next() {
  return {{.family = "glm5_next",
           .model_types = {"glm5_next"},
           .layouts = {"automodel", "transformers"},
           .hf_marks = {"model.language_model.layers.{layer}.hc_attn_fn"},
           .native_marks = {"model.language_model.layers.{layer}.attn_hc.fn"},
           .text_names = {"model.language_model."},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
