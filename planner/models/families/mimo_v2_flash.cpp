/// MiMo V2 Flash, text alone. Source of names and shapes: MiMoV2FlashForCausalLM of transformers 5.23 and the
/// adapter of nemo-automodel 0.7.0. Layers with a sliding window have sinks and heads of their own numbers.
/// In FP8, keys of full attention have a row of scales for each block of a head, or some to spare: packages
/// differ, and a load refuses them (names/encodings.cpp). MiMo V2.5 and later store queries, keys and values
/// as one, in parts: another family.

#include <array>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array<std::string_view, 1> sinks = {"self_attn.attention_sink_bias"};
/// In nemo-automodel with the attention of Transformer Engine; known by their name above.
constexpr std::array sinks_of_engine = {
    Row{"self_attn.attention_sink_bias", "self_attn.attn_module.softmax_offset"}};
constexpr std::array sinks_of_transformers = {Row{"self_attn.attention_sink_bias", "self_attn.sinks"}};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, split_experts(layout));
  if (layout == "automodel") {
    add_layers(map, text, sinks);
    add_rules(map.rules, sinks_of_engine, text.hf_layer(), text.native_layer(), /*known=*/false);
  } else {
    add_layers(map, text, sinks_of_transformers);
  }
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  map.without_place.emplace_back(text.hf + "mtp.{*}");
  add_outside_layers(map, text, catalog);
  return map;
}

/// Of the two packages' words for one thing.
constexpr std::string_view sample_config = R"({
  "architectures": ["MiMoV2FlashForCausalLM"], "model_type": "mimo_v2_flash", "v_head_dim": 12,
  "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_head_dim": 16, "swa_v_head_dim": 12,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40, "n_group": 2, "topk_group": 1,
  "layer_types": ["full_attention", "sliding_attention"], "hybrid_layer_pattern": [0, 1],
  "mlp_layer_types": ["dense", "sparse"], "moe_layer_freq": [0, 1]})";

constexpr auto scaled = StoredAs::scaled;
constexpr SampleRow full_attention[] = {
    {"q_proj.weight", "heads*head_dim hidden", scaled},
    {"k_proj.weight", "kv_heads*head_dim hidden", scaled},
    {"v_proj.weight", "kv_heads*v_head_dim hidden", scaled},
    {"o_proj.weight", "hidden heads*v_head_dim"},
};
constexpr SampleRow sliding_attention[] = {
    {"q_proj.weight", "swa_num_attention_heads*swa_head_dim hidden", scaled},
    {"k_proj.weight", "swa_num_key_value_heads*swa_head_dim hidden", scaled},
    {"v_proj.weight", "swa_num_key_value_heads*swa_v_head_dim hidden", scaled},
    {"o_proj.weight", "hidden swa_num_attention_heads*swa_v_head_dim"},
    {"attention_sink_bias", "swa_num_attention_heads"},
};
constexpr SampleRow router_bias[] = {{"gate.e_score_correction_bias", "experts", StoredAs::f32}};

void add_tensors(SampleTensors& tensors) {
  add_sample_ends(tensors);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    if (tensors.kind("layer_types", layer) == "sliding_attention") {
      add_sample_layer(tensors, prefix, {sliding_attention});
    } else {
      add_sample_layer(tensors, prefix, {full_attention});
    }
    if (tensors.kind("mlp_layer_types", layer) == "dense") {
      tensors.add(prefix + "mlp.", sample_mlp());
      continue;
    }
    add_sample_mixture(tensors, prefix + "mlp.");
    tensors.add(prefix + "mlp.", router_bias);
  }
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors},
          {.form = "fp8",
           .config = std::string(sample_config),
           .encoding = "block_fp8",
           .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> mimo_v2_flash() {
  return {{.family = "mimo_v2_flash",
           .model_types = {"mimo_v2_flash"},
           .layouts = {"automodel", "transformers"},
           .hf_marks = {".self_attn.attention_sink_bias"},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
