/// Gemma 4, with vision tower and text alone. Source of names and shapes: the models gemma4 and gemma4_text
/// of transformers 5.23, which keep the files' names, and the adapter of nemo-automodel 0.7.0, which holds
/// each expert's down_proj multiplied by its router's per_expert_scale.

#include <array>
#include <string>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array<std::string_view, 6> beside_text = {
    "model.vision_tower.{*}", "model.embed_vision.{*}",    "model.audio_tower.{*}",
    "model.embed_audio.{*}",  "model.vision_embedder.{*}", "model.audio_embedder.{*}"};
constexpr std::array<std::string_view, 5> around_layers = {
    "embed_tokens_per_layer.{*}", "per_layer_model_projection.{*}", "per_layer_projection_norm.{*}",
    "router.{*}", "layer_scalar"};
constexpr std::array<std::string_view, 1> layer = {"{*}"};
constexpr std::string_view multiplier = "router.per_expert_scale";
constexpr std::array mixture_of_automodel = {
    Row{"experts.gate_up_proj", "moe.experts.gate_and_up_projs", "e o i -> e i o"},
    Row{.hf = "experts.down_proj",
        .native = "moe.experts.down_projs",
        .axes = "e o i -> e i o",
        .multiplier = multiplier},
    Row{"router.proj.weight", "moe.gate.proj.weight"},
    Row{"router.scale", "moe.gate.scale"},
};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  TextModel text = text_model(layout);
  text.hf = vision_models_text(catalog);
  text.native = vision_models_native_text(catalog);
  if (layout == "automodel") add_layers(map, text, mixture_of_automodel);
  add_layers(map, text, layer);
  add_rules(map.rules, around_layers, text.hf, text.native);
  add_rules(map.rules, beside_text, "", "");
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view mixture_config = R"({
  "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4", "tie_word_embeddings": true,
  "audio_config": null,
  "text_config": {"model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "enable_moe_block": true,
  "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 40, "global_head_dim": 24,
  "layer_types": ["sliding_attention", "full_attention"]},
  "vision_config": {"model_type": "gemma4_vision", "hidden_size": 12, "intermediate_size": 20,
  "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 6, "patch_size": 4,
  "position_embedding_size": 16}})";
constexpr std::string_view dense_config = R"({
  "architectures": ["Gemma4ForCausalLM"], "model_type": "gemma4_text", "tie_word_embeddings": true,
  "hidden_size_per_layer_input": 0, "enable_moe_block": false, "global_head_dim": 24,
  "layer_types": ["sliding_attention", "full_attention"]})";

constexpr SampleRow sample_layer[] = {
    {"input_layernorm.weight", "hidden"},
    {"post_attention_layernorm.weight", "hidden"},
    {"pre_feedforward_layernorm.weight", "hidden"},
    {"post_feedforward_layernorm.weight", "hidden"},
    {"layer_scalar", "1"},
};
constexpr SampleRow global_attention[] = {
    {"q_proj.weight", "heads*global_head_dim hidden"},
    {"k_proj.weight", "kv_heads*global_head_dim hidden"},
    {"v_proj.weight", "kv_heads*global_head_dim hidden"},
    {"o_proj.weight", "hidden heads*global_head_dim"},
    {"q_norm.weight", "global_head_dim"},
    {"k_norm.weight", "global_head_dim"},
};
constexpr SampleRow sample_mixture[] = {
    {"experts.gate_up_proj", "experts 2*expert_inter hidden"},
    {"experts.down_proj", "experts hidden expert_inter"},
    {"post_feedforward_layernorm_1.weight", "hidden"},
    {"post_feedforward_layernorm_2.weight", "hidden"},
    {"pre_feedforward_layernorm_2.weight", "hidden"},
    {"router.per_expert_scale", "experts"},
    {"router.proj.weight", "experts hidden"},
    {"router.scale", "hidden"},
};
constexpr SampleRow around_tower[] = {
    {"patch_embedder.input_proj.weight", "hidden_size 3*patch_size*patch_size"},
    {"patch_embedder.position_embedding_table", "2 position_embedding_size hidden_size"},
};
constexpr SampleRow tower_layer[] = {
    {"input_layernorm.weight", "hidden_size"},
    {"post_attention_layernorm.weight", "hidden_size"},
    {"pre_feedforward_layernorm.weight", "hidden_size"},
    {"post_feedforward_layernorm.weight", "hidden_size"},
    {"self_attn.q_proj.linear.weight", "heads*head_dim hidden_size"},
    {"self_attn.k_proj.linear.weight", "kv_heads*head_dim hidden_size"},
    {"self_attn.v_proj.linear.weight", "kv_heads*head_dim hidden_size"},
    {"self_attn.o_proj.linear.weight", "hidden_size heads*head_dim"},
    {"self_attn.q_norm.weight", "head_dim"},
    {"self_attn.k_norm.weight", "head_dim"},
    {"mlp.gate_proj.linear.weight", "intermediate_size hidden_size"},
    {"mlp.up_proj.linear.weight", "intermediate_size hidden_size"},
    {"mlp.down_proj.linear.weight", "hidden_size intermediate_size"},
};

void add_text(SampleTensors& tensors, const std::string& model) {
  add_sample_ends(tensors, model);
  for (std::int64_t k = 0; k < tensors.number("num_hidden_layers"); ++k) {
    const std::string prefix = layer_prefix(model, k);
    tensors.add(prefix, sample_layer);
    if (tensors.kind("layer_types", k) == "full_attention") {
      tensors.add(prefix + "self_attn.", global_attention);
    } else {
      tensors.add(prefix + "self_attn.", sample_attention());
      tensors.add(prefix + "self_attn.", sample_head_norms());
    }
    tensors.add(prefix + "mlp.", sample_mlp());
    if (tensors.is("enable_moe_block")) tensors.add(prefix, sample_mixture);
  }
}

void add_dense(SampleTensors& tensors) { add_text(tensors, "model."); }

void add_mixture(SampleTensors& tensors) {
  constexpr std::string_view part = "vision_config";
  add_text(tensors, "model.language_model.");
  tensors.add("model.embed_vision.embedding_projection.weight", DType::BF16,
              {tensors.number("hidden"), tensors.number("hidden", part)});
  tensors.add("model.vision_tower.", around_tower, part);
  for (std::int64_t k = 0; k < tensors.number("num_hidden_layers", part); ++k)
    tensors.add(layer_prefix("model.vision_tower.encoder.", k), tower_layer, part);
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(mixture_config), .add_tensors = add_mixture},
          {.form = "dense", .config = std::string(dense_config), .add_tensors = add_dense}};
}

}  // namespace

std::vector<Model> gemma4() {
  return {{.family = "gemma4",
           .model_types = {"gemma4", "gemma4_text"},
           .layouts = {"automodel", "transformers"},
           .text_names = {"model.language_model.", "model."},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
