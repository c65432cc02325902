/// Ling 2 and Ring 2. Source of names and shapes: the adapter ling_v2 of nemo-automodel 0.7.0.
/// transformers 5.23 has no such model; the modules of the release's own code have the names of the files.

#include <array>

#include "planner/models/config.h"
#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::string_view fused = "attention.query_key_value.weight";
constexpr std::array automodel = {
    Row{fused, "self_attn.q_proj.weight", "([query]|key|key) i -> query i"},
    Row{fused, "self_attn.k_proj.weight", "(query|[key]|key) i -> key i"},
    Row{fused, "self_attn.v_proj.weight", "(query|key|[key]) i -> key i"},
    Row{"attention.dense.{*}", "self_attn.o_proj.{*}"},
    Row{"attention.query_layernorm.{*}", "self_attn.q_norm.{*}"},
    Row{"attention.key_layernorm.{*}", "self_attn.k_norm.{*}"},
    Row{"mlp.gate.expert_bias", "mlp.gate.e_score_correction_bias"},
};
constexpr std::array<std::string_view, 1> layer = {"final_layernorm.{*}"};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  TextModel text = text_model(layout);
  text.hf_embedding = "word_embeddings.weight";
  const auto heads = number_in_config(catalog, "num_attention_heads");
  const auto width = number_in_config(catalog, "head_dim");
  if (heads && width) map.sizes.emplace("query", *heads * *width);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, automodel);
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  add_layers(map, text, mtp_names());
  add_layers(map, text, layer);
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["BailingMoeV2ForCausalLM"], "model_type": "bailing_moe_v2", "num_experts": 4,
  "num_experts_per_tok": 2, "num_shared_experts": 1, "moe_intermediate_size": 40, "first_k_dense_replace": 1,
  "num_nextn_predict_layers": 1})";

constexpr SampleRow sample_layer[] = {
    {"input_layernorm.weight", "hidden"},
    {"post_attention_layernorm.weight", "hidden"},
    {"attention.query_key_value.weight", "heads*head_dim+2*kv_heads*head_dim hidden", StoredAs::scaled},
    {"attention.dense.weight", "hidden heads*head_dim", StoredAs::scaled},
    {"attention.query_layernorm.weight", "head_dim"},
    {"attention.key_layernorm.weight", "head_dim"},
};
constexpr SampleRow sample_bias[] = {{"mlp.gate.expert_bias", "experts", StoredAs::f32}};
constexpr SampleRow sample_mtp_parts[] = {{"enorm.weight", "hidden"},
                                          {"hnorm.weight", "hidden"},
                                          {"eh_proj.weight", "hidden 2*hidden"},
                                          {"final_layernorm.weight", "hidden"}};
constexpr SampleRow sample_outside[] = {{"model.word_embeddings.weight", "vocab hidden"},
                                        {"model.norm.weight", "hidden"},
                                        {"lm_head.weight", "vocab hidden"}};

void add_tensors(SampleTensors& tensors) {
  tensors.add("", sample_outside);
  const std::int64_t layers = tensors.number("num_hidden_layers");
  for (std::int64_t k = 0; k < layers + tensors.number("num_nextn_predict_layers"); ++k) {
    const std::string prefix = layer_prefix("model.", k);
    tensors.add(prefix, sample_layer);
    if (k < tensors.number("first_k_dense_replace")) {
      tensors.add(prefix + "mlp.", sample_mlp());
    } else {
      add_sample_mixture(tensors, prefix + "mlp.");
      tensors.add(prefix, sample_bias);
      tensors.add(prefix + "mlp.shared_experts.", sample_shared_expert());
    }
    if (k >= layers) tensors.add(prefix, sample_mtp_parts);
  }
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> ling() {
  return {{.family = "bailing_moe_v2",
           .model_types = {"bailing_moe_v2", "bailing_moe"},
           .layouts = {"automodel"},
           .hf_marks = {"model.layers.{layer}.attention.query_key_value.weight"},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
