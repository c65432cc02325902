/// GLM-4.5, 4.6 and 4.7 (glm4_moe), their small one (glm4_moe_lite) and GLM-5 (glm_moe_dsa). Source of names
/// and shapes: the models of those names in transformers 5.23, which have no MTP, and the adapters of
/// nemo-automodel 0.7.0.

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  if (layout == "transformers") leave_out_mtp_layers(map, text, catalog);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  add_layers(map, text, mtp_names());
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view usual_config = R"({
  "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "use_qk_norm": true,
  "attention_bias": true, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
  "moe_intermediate_size": 40, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
  "num_nextn_predict_layers": 1})";
constexpr std::string_view lite_config = R"({
  "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite", "num_key_value_heads": 4, "head_dim": null, "q_lora_rank": 36,
  "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
  "moe_intermediate_size": 40, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
  "num_nextn_predict_layers": 1})";
constexpr std::string_view glm5_config = R"({
  "architectures": ["GlmMoeDsaForCausalLM"], "model_type": "glm_moe_dsa", "num_key_value_heads": 4, "head_dim": null, "q_lora_rank": 36,
  "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
  "moe_intermediate_size": 40, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
  "num_nextn_predict_layers": 1, "index_topk": 8, "index_head_dim": 6, "index_n_heads": 2})";

void add_usual(SampleTensors& tensors) {
  add_sample_ends(tensors);
  add_mixture_decoder(tensors, "model.",
                      {sample_attention(), sample_attention_biases(), sample_head_norms()});
}
void add_lite(SampleTensors& tensors) {
  add_sample_ends(tensors);
  add_mixture_decoder(tensors, "model.", {sample_latent_attention()});
}
void add_glm5(SampleTensors& tensors) {
  add_sample_ends(tensors);
  add_mixture_decoder(tensors, "model.", {sample_latent_attention(), sample_indexer()});
}

std::vector<Sample> usual_samples() {
  return {{.form = "bf16", .config = std::string(usual_config), .add_tensors = add_usual},
          {.form = "fp8",
           .config = std::string(usual_config),
           .encoding = "channel_fp8",
           .add_tensors = add_usual}};
}
std::vector<Sample> lite_samples() {
  return {{.form = "bf16", .config = std::string(lite_config), .add_tensors = add_lite}};
}
std::vector<Sample> glm5_samples() {
  return {
      {.form = "bf16", .config = std::string(glm5_config), .add_tensors = add_glm5},
      {.form = "fp8", .config = std::string(glm5_config), .encoding = "block_fp8", .add_tensors = add_glm5}};
}

struct Generation {
  std::string_view family;
  std::vector<Sample> (*samples)();
};
constexpr Generation generations[] = {
    {"glm4_moe", usual_samples}, {"glm4_moe_lite", lite_samples}, {"glm_moe_dsa", glm5_samples}};

}  // namespace

std::vector<Model> glm4_moe() {
  std::vector<Model> models;
  for (const auto& [family, samples] : generations) {
    models.push_back({.family = family,
                      .model_types = {family},
                      .layouts = {"automodel", "transformers"},
                      .weight_map = weight_map,
                      .samples = samples});
  }
  return models;
}

}  // namespace shardwright
