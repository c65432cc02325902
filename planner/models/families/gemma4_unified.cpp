/// Gemma 4 without towers, such as Gemma 4 12B: patches and frames are projected. Source of names and shapes:
/// the models gemma4_unified and gemma4_unified_text of transformers 5.23, and the adapter of nemo-automodel
/// 0.7.0, whose names are transformers'. Layers with global attention may have keys that are values, too.

#include <array>
#include <string>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array vision = {
    Row{"embed_vision.embedding_projection.{*}", "embed_vision.multimodal_embedder.embedding_projection.{*}"},
    Row{"vision_embedder.{*}", "embed_vision.{*}"},
    Row{"embed_audio.{*}", "embed_audio.{*}"},
};
constexpr std::array<std::string_view, 3> more_of_layer = {"pre_feedforward_layernorm.{*}",
                                                           "post_feedforward_layernorm.{*}", "layer_scalar"};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  TextModel text = text_model(layout);
  text.hf = vision_models_text(catalog);
  text.native = vision_models_native_text(catalog);
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, more_of_layer);
  add_rules(map.rules, vision, "model.", "model.");
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified",
  "tie_word_embeddings": true, "audio_config": {"model_type": "gemma4_unified_audio", "audio_embed_dim": 10},
  "text_config": {"model_type": "gemma4_unified_text", "global_head_dim": 24, "attention_k_eq_v": true,
  "num_global_key_value_heads": 1, "layer_types": ["sliding_attention", "full_attention"]},
  "vision_config": {"model_type": "gemma4_unified_vision", "patch_size": 2, "pooling_kernel_size": 3,
  "mm_embed_dim": 14, "mm_posemb_size": 16, "output_proj_dims": 14}})";
constexpr std::string_view text_config = R"({
  "architectures": ["Gemma4UnifiedForCausalLM"], "model_type": "gemma4_unified_text",
  "tie_word_embeddings": true, "global_head_dim": 24, "attention_k_eq_v": true,
  "num_global_key_value_heads": 1, "layer_types": ["sliding_attention", "full_attention"]})";

constexpr SampleRow sample_layer[] = {
    {"pre_feedforward_layernorm.weight", "hidden"},
    {"post_feedforward_layernorm.weight", "hidden"},
    {"layer_scalar", "1"},
};
constexpr SampleRow global_attention[] = {
    {"q_proj.weight", "heads*global_head_dim hidden"},
    {"k_proj.weight", "num_global_key_value_heads*global_head_dim hidden"},
    {"o_proj.weight", "hidden heads*global_head_dim"},
    {"q_norm.weight", "global_head_dim"},
    {"k_norm.weight", "global_head_dim"},
};
constexpr SampleRow sample_vision[] = {
    {"patch_ln1.weight", "3*patch_size*pooling_kernel_size*patch_size*pooling_kernel_size"},
    {"patch_ln1.bias", "3*patch_size*pooling_kernel_size*patch_size*pooling_kernel_size"},
    {"patch_dense.weight", "mm_embed_dim 3*patch_size*pooling_kernel_size*patch_size*pooling_kernel_size"},
    {"patch_dense.bias", "mm_embed_dim"},
    {"patch_ln2.weight", "mm_embed_dim"},
    {"patch_ln2.bias", "mm_embed_dim"},
    {"pos_embedding", "mm_posemb_size 2 mm_embed_dim"},
    {"pos_norm.weight", "mm_embed_dim"},
    {"pos_norm.bias", "mm_embed_dim"},
};

void add_text(SampleTensors& tensors, const std::string& model) {
  add_sample_ends(tensors, model);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix(model, layer);
    if (tensors.kind("layer_types", layer) == "full_attention") {
      add_sample_layer(tensors, prefix, {global_attention});
    } else {
      add_sample_layer(tensors, prefix, {sample_attention(), sample_head_norms()});
    }
    tensors.add(prefix, sample_layer);
    tensors.add(prefix + "mlp.", sample_mlp());
  }
}

void add_text_alone(SampleTensors& tensors) { add_text(tensors, "model."); }

void add_whole(SampleTensors& tensors) {
  const std::int64_t hidden = tensors.number("hidden");
  add_text(tensors, "model.language_model.");
  tensors.add("model.vision_embedder.", sample_vision, "vision_config");
  tensors.add("model.embed_vision.embedding_projection.weight", DType::BF16,
              {hidden, tensors.number("output_proj_dims", "vision_config")});
  tensors.add("model.embed_audio.embedding_projection.weight", DType::BF16,
              {hidden, tensors.number("audio_embed_dim", "audio_config")});
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_whole},
          {.form = "text", .config = std::string(text_config), .add_tensors = add_text_alone}};
}

}  // namespace

std::vector<Model> gemma4_unified() {
  return {{.family = "gemma4_unified",
           .model_types = {"gemma4_unified", "gemma4_unified_text"},
           .layouts = {"automodel", "transformers"},
           .hf_marks = {"model.vision_embedder.patch_dense.{*}"},
           .native_marks = {"model.embed_vision.patch_dense.{*}"},
           .text_names = {"model.language_model.", "model."},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
