/// Qwen3.5 and Qwen3.6, dense and with experts, with and without vision tower. Source of names and shapes:
/// the models qwen3_5 and qwen3_5_moe of transformers 5.23, which have no MTP, the adapters of nemo-automodel
/// 0.7.0 and, but for the shape of stacked experts, which it takes for [experts, hidden, 2 intermediate],
/// that of torchtitan 0.3.0. Released files have experts stacked (BF16) or one by one (FP8); MTP's are
/// either, whatever the decoder's are.

#include <array>
#include <string>

#include "planner/models/config.h"
#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array<std::string_view, 1> vision = {"model.visual.{*}"};
constexpr std::array mtp = {
    Row{"mtp.fc.weight", "mtp.layers.0.eh_proj.weight"},
    Row{"mtp.pre_fc_norm_embedding.weight", "mtp.layers.0.enorm.weight"},
    Row{"mtp.pre_fc_norm_hidden.weight", "mtp.layers.0.hnorm.weight"},
    Row{"mtp.norm.weight", "mtp.layers.0.final_layernorm.weight"},
};
constexpr std::array inner_head = {Row{"model.lm_head.weight", "lm_head.weight"}};

constexpr std::array torchtitan = {
    Row{"self_attn.q_proj.weight", "attn.wq.weight"},
    Row{"self_attn.k_proj.weight", "attn.wk.weight"},
    Row{"self_attn.v_proj.weight", "attn.wv.weight"},
    Row{"self_attn.o_proj.weight", "attn.wo.weight"},
    Row{"self_attn.q_norm.weight", "attn.q_norm.weight"},
    Row{"self_attn.k_norm.weight", "attn.k_norm.weight"},
    Row{"linear_attn.in_proj_qkv.weight", "attn.in_proj_q.weight", "([key]|key|value) i -> key i"},
    Row{"linear_attn.in_proj_qkv.weight", "attn.in_proj_k.weight", "(key|[key]|value) i -> key i"},
    Row{"linear_attn.in_proj_qkv.weight", "attn.in_proj_v.weight", "(key|key|[value]) i -> value i"},
    Row{"linear_attn.conv1d.weight", "attn.conv_q.weight", "([key]|key|value) 1 t -> key 1 t"},
    Row{"linear_attn.conv1d.weight", "attn.conv_k.weight", "(key|[key]|value) 1 t -> key 1 t"},
    Row{"linear_attn.conv1d.weight", "attn.conv_v.weight", "(key|key|[value]) 1 t -> value 1 t"},
    Row{"linear_attn.in_proj_z.weight", "attn.in_proj_z.weight"},
    Row{"linear_attn.in_proj_a.weight", "attn.in_proj_a.weight"},
    Row{"linear_attn.in_proj_b.weight", "attn.in_proj_b.weight"},
    Row{"linear_attn.A_log", "attn.A_log"},
    Row{"linear_attn.dt_bias", "attn.dt_bias"},
    Row{"linear_attn.norm.weight", "attn.norm.weight"},
    Row{"linear_attn.out_proj.weight", "attn.out_proj.weight"},
    Row{"mlp.gate.weight", "moe.router.gate.weight"},
    Row{"mlp.shared_expert.gate_proj.weight", "moe.shared_experts.w1.weight"},
    Row{"mlp.shared_expert.up_proj.weight", "moe.shared_experts.w3.weight"},
    Row{"mlp.shared_expert.down_proj.weight", "moe.shared_experts.w2.weight"},
    Row{"mlp.shared_expert_gate.weight", "moe.shared_experts.gate.weight"},
};
constexpr std::array vision_of_torchtitan = {
    Row{"patch_embed.proj.weight", "patch_embed.weight", "o c t h w -> o (c t h w)"},
    Row{"patch_embed.proj.bias", "patch_embed.bias"},
    Row{"pos_embed.weight", "pos_embed"},
    Row{"blocks.{layer}.attn.qkv.weight", "layers.{layer}.attn.wq.weight", "(0/3 o) i -> o i"},
    Row{"blocks.{layer}.attn.qkv.weight", "layers.{layer}.attn.wk.weight", "(1/3 o) i -> o i"},
    Row{"blocks.{layer}.attn.qkv.weight", "layers.{layer}.attn.wv.weight", "(2/3 o) i -> o i"},
    Row{"blocks.{layer}.attn.qkv.bias", "layers.{layer}.attn.wq.bias", "(0/3 o) -> o"},
    Row{"blocks.{layer}.attn.qkv.bias", "layers.{layer}.attn.wk.bias", "(1/3 o) -> o"},
    Row{"blocks.{layer}.attn.qkv.bias", "layers.{layer}.attn.wv.bias", "(2/3 o) -> o"},
    Row{"blocks.{layer}.{*}", "layers.{layer}.{*}"},
    Row{"merger.{*}", "merger.{*}"},
};

void add_experts_in_either_form(WeightMap& map, const TextModel& text) {
  add_experts(map, text, stacked_experts(text.layout));
  add_experts(map, text, split_experts(text.layout), "mlp.experts.", /*alternative=*/1);
}

void add_layers_of(WeightMap& map, const TextModel& text, bool has_experts) {
  if (has_experts) add_experts_in_either_form(map, text);
  if (text.layout == "torchtitan") {
    add_layers(map, text, torchtitan);
  } else {
    add_layers(map, text, linear_attention_layer(text.layout));
  }
  add_layers(map, text, usual_layer(text.layout));
}

WeightMap weight_map(std::string_view layout, const Catalog& catalog, bool has_experts) {
  WeightMap map;
  TextModel text = text_model(layout);
  text.hf = vision_models_text(catalog);
  if (layout == "torchtitan") {
    add_rules(map.rules, vision_of_torchtitan, "model.visual.", "vision_encoder.");
    const auto heads = number_in_config(catalog, "linear_num_key_heads");
    const auto width = number_in_config(catalog, "linear_key_head_dim");
    if (heads && width) map.sizes.emplace("key", *heads * *width);
  } else {
    text.native = vision_models_native_text(catalog);
    add_rules(map.rules, vision, "", "");
  }
  add_layers_of(map, text, has_experts);
  if (layout == "automodel") {
    TextModel of_mtp = text;
    of_mtp.hf = of_mtp.native = "mtp.";
    add_layers_of(map, of_mtp, has_experts);
    add_rules(map.rules, mtp, "", "");
  } else {
    map.without_place.emplace_back("mtp.{*}");
  }
  add_outside_layers(map, text, catalog);
  add_rules(map.rules, inner_head, "", "", /*known=*/true, /*alternative=*/1);
  return map;
}

WeightMap dense(std::string_view layout, const Catalog& catalog) {
  return weight_map(layout, catalog, /*has_experts=*/false);
}
WeightMap with_experts(std::string_view layout, const Catalog& catalog) {
  return weight_map(layout, catalog, /*has_experts=*/true);
}

constexpr std::string_view dense_config = R"({
  "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
  "text_config": {"model_type": "qwen3_5_text", "linear_num_key_heads": 2,
  "linear_num_value_heads": 4, "linear_key_head_dim": 4, "linear_value_head_dim": 6,
  "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "full_attention"], "mtp_num_hidden_layers": 1},
  "vision_config": {"model_type": "qwen3_5_vision", "depth": 2, "hidden_size": 12, "intermediate_size": 20,
  "num_heads": 2, "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
  "out_hidden_size": 48, "num_position_embeddings": 16}})";
constexpr std::string_view mixture_config = R"({
  "architectures": ["Qwen3_5MoeForConditionalGeneration"], "model_type": "qwen3_5_moe",
  "text_config": {"model_type": "qwen3_5_moe_text", "num_experts": 4, "num_experts_per_tok": 2,
  "moe_intermediate_size": 40, "shared_expert_intermediate_size": 28, "linear_num_key_heads": 2,
  "linear_num_value_heads": 4, "linear_key_head_dim": 4, "linear_value_head_dim": 6,
  "linear_conv_kernel_dim": 4, "layer_types": ["linear_attention", "full_attention"], "mtp_num_hidden_layers": 1},
  "vision_config": {"model_type": "qwen3_5_moe_vision", "depth": 2, "hidden_size": 12, "intermediate_size": 20,
  "num_heads": 2, "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
  "out_hidden_size": 48, "num_position_embeddings": 16}})";

constexpr SampleRow linear_projections[] = {
    {"in_proj_qkv.weight",
     "2*linear_num_key_heads*linear_key_head_dim+linear_num_value_heads*linear_value_head_dim hidden",
     StoredAs::scaled},
    {"in_proj_z.weight", "linear_num_value_heads*linear_value_head_dim hidden", StoredAs::scaled},
    {"in_proj_a.weight", "linear_num_value_heads hidden"},
    {"in_proj_b.weight", "linear_num_value_heads hidden"},
};
constexpr SampleRow router[] = {{"gate.weight", "experts hidden"}};

// What nvidia/Qwen3.6-35B-A3B-NVFP4 stores as it does routed experts.
constexpr SampleRow shared_expert_as_experts[] = {
    {"gate_proj.weight", "shared_inter hidden", StoredAs::experts},
    {"up_proj.weight", "shared_inter hidden", StoredAs::experts},
    {"down_proj.weight", "hidden shared_inter", StoredAs::experts},
};
constexpr SampleRow shared_expert_gate[] = {{"shared_expert_gate.weight", "1 hidden"}};
constexpr SampleRow embedding_and_norm[] = {{"embed_tokens.weight", "vocab hidden"},
                                            {"norm.weight", "hidden"}};
constexpr SampleRow head_as_experts[] = {{"lm_head.weight", "vocab hidden", StoredAs::experts}};

void add_mlp(SampleTensors& tensors, const std::string& module, bool is_split) {
  if (!is_split) {
    tensors.add(module, router);
    tensors.add(module + "experts.", sample_stacked_experts());
  } else {
    add_sample_mixture(tensors, module);
  }
  add_sample_gated_shared_expert(tensors, module);
}

void add_tensors(SampleTensors& tensors, bool has_experts, bool is_mtp_split) {
  const std::string model = "model.language_model.";
  const auto add_layer = [&](const std::string& prefix, bool is_linear, bool is_split) {
    if (is_linear) tensors.add(prefix + "linear_attn.", linear_projections);
    add_sample_gated_layer(tensors, prefix, is_linear);
    if (has_experts) {
      add_mlp(tensors, prefix + "mlp.", is_split);
    } else {
      tensors.add(prefix + "mlp.", sample_mlp());
    }
  };
  add_sample_ends(tensors, model);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer)
    add_layer(layer_prefix(model, layer), tensors.kind("layer_types", layer) == "linear_attention",
              tensors.is_quantized());
  add_layer("mtp.layers.0.", /*is_linear=*/false, is_mtp_split);
  tensors.add("mtp.", sample_mtp_beside());
  add_sample_vision(tensors);
}

/// Attention of either kind in FP8, all that is an MLP and the head in NVFP4, MTP as it was.
void add_mixture_by_nvidia(SampleTensors& tensors) {
  const std::string model = "model.language_model.";
  tensors.add(model, embedding_and_norm);
  tensors.add("", head_as_experts);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix(model, layer);
    const bool is_linear = tensors.kind("layer_types", layer) == "linear_attention";
    if (is_linear) tensors.add(prefix + "linear_attn.", linear_projections);
    add_sample_gated_layer(tensors, prefix, is_linear);
    add_sample_mixture(tensors, prefix + "mlp.");
    tensors.add(prefix + "mlp.shared_expert.", shared_expert_as_experts);
    tensors.add(prefix + "mlp.", shared_expert_gate);
  }
  tensors.quantize(false);
  add_sample_gated_layer(tensors, "mtp.layers.0.", /*is_linear=*/false);
  add_mlp(tensors, "mtp.layers.0.mlp.", /*is_split=*/false);
  tensors.add("mtp.", sample_mtp_beside());
  tensors.quantize(true);
  add_sample_vision(tensors);
}

void add_dense(SampleTensors& tensors) { add_tensors(tensors, /*has_experts=*/false, false); }
void add_mixture(SampleTensors& tensors) {
  add_tensors(tensors, /*has_experts=*/true, /*is_mtp_split=*/tensors.is_quantized());
}
void add_mixture_with_mtp_apart(SampleTensors& tensors) {
  add_tensors(tensors, /*has_experts=*/true, /*is_mtp_split=*/true);
}

std::vector<Sample> dense_samples() { return bf16_and_block_fp8(dense_config, add_dense); }

std::vector<Sample> mixture_samples() {
  return {{.form = "bf16", .config = std::string(mixture_config), .add_tensors = add_mixture},
          {.form = "bf16_mtp_apart",
           .config = std::string(mixture_config),
           .add_tensors = add_mixture_with_mtp_apart},
          {.form = "fp8",
           .config = std::string(mixture_config),
           .encoding = "block_fp8",
           .scale = DType::BF16,
           .add_tensors = add_mixture},
          {.form = "nvfp4",
           .config = std::string(mixture_config),
           .encoding = "tensor_fp8_modelopt",
           .expert_encoding = "nvfp4_modelopt_w4a16",
           .add_tensors = add_mixture_by_nvidia}};
}

}  // namespace

std::vector<Model> qwen3_5() {
  return {
      {.family = "qwen3_5",
       .model_types = {"qwen3_5", "qwen3_5_text"},
       .layouts = {"automodel", "transformers", "torchtitan"},
       .text_names = {"model.language_model.", "model."},
       .weight_map = dense,
       .samples = dense_samples},
      {.family = "qwen3_5_moe",
       .model_types = {"qwen3_5_moe", "qwen3_5_moe_text"},
       .layouts = {"automodel", "transformers", "torchtitan"},
       .hf_marks = {"model.language_model.layers.{layer}.mlp.shared_expert_gate.weight"},
       .native_marks = {"model.language_model.layers.{layer}.mlp.shared_expert_gate.weight"},
       .text_names = {"model.language_model.", "model."},
       .weight_map = with_experts,
       .samples = mixture_samples},
  };
}

}  // namespace shardwright
