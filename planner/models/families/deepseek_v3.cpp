/// DeepSeek V3, V3.1 and R1, V3.2, and Kimi K2, which has V3's names. Source of names and shapes: the models
/// deepseek_v3 and deepseek_v32 of transformers 5.23, which have no MTP, and the adapters of nemo-automodel
/// 0.7.0 and torchtitan 0.3.0.

#include <array>
#include <optional>
#include <string>

#include "planner/models/config.h"
#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array mtp_of_torchtitan = {
    Row{"enorm.weight", "enorm.weight"},
    Row{"hnorm.weight", "hnorm.weight"},
    Row{"eh_proj.weight", "eh_proj.weight"},
    Row{"shared_head.norm.weight", "mtp_norm.weight"},
};

/// torchtitan numbers MTP's layers anew, and has one embedding and one head.
void add_mtp_layers(WeightMap& map, std::int64_t layers) {
  const std::string hf = "model.layers.{layer+" + std::to_string(layers) + "}.";
  const std::string native = "mtp_layers.{layer}.";
  add_rules(map.rules, split_experts("torchtitan"), hf + "mlp.experts.",
            native + "moe.routed_experts.inner_experts.");
  for (const std::span<const Row> rows :
       {usual_layer("torchtitan"), usual_mixture("torchtitan"), torchtitan_latent_attention(),
        std::span<const Row>(mtp_of_torchtitan)})
    add_rules(map.rules, rows, hf, native);
  for (const char* shared : {"embed_tokens.{*}", "shared_head.head.{*}"})
    map.without_place.emplace_back(hf + shared);
}

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  if (layout == "transformers") leave_out_mtp_layers(map, text, catalog);
  if (layout == "torchtitan") {
    if (const auto layers = number_in_config(catalog, "num_hidden_layers")) add_mtp_layers(map, *layers);
    add_layers(map, text, torchtitan_latent_attention());
  }
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  if (layout != "torchtitan") add_layers(map, text, mtp_names());
  add_outside_layers(map, text, catalog);
  map.ignored.emplace_back("model.layers.{layer}.self_attn.rotary_emb.inv_freq");
  return map;
}

constexpr std::string_view v3_config = R"({
  "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_key_value_heads": 4, "head_dim": null, "q_lora_rank": 36,
  "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
  "moe_intermediate_size": 40, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
  "num_nextn_predict_layers": 1})";
constexpr std::string_view v32_config = R"({
  "architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", "num_key_value_heads": 4, "head_dim": null, "q_lora_rank": 36,
  "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
  "moe_intermediate_size": 40, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
  "num_nextn_predict_layers": 1, "index_topk": 8, "index_head_dim": 6, "index_n_heads": 2})";

/// The releases have embedding and head a second time, for the layer of multi-token prediction.
constexpr SampleRow copies_for_mtp[] = {{"embed_tokens.weight", "vocab hidden"},
                                        {"shared_head.head.weight", "vocab hidden"}};

void add_ends(SampleTensors& tensors) {
  add_sample_ends(tensors);
  const std::int64_t layers = tensors.number("num_hidden_layers");
  for (std::int64_t k = 0; k < tensors.number("num_nextn_predict_layers"); ++k)
    tensors.add(layer_prefix("model.", layers + k), copies_for_mtp);
}
void add_v3(SampleTensors& tensors) {
  add_ends(tensors);
  add_mixture_decoder(tensors, "model.", {sample_latent_attention()});
}
void add_v32(SampleTensors& tensors) {
  add_ends(tensors);
  add_mixture_decoder(tensors, "model.", {sample_latent_attention(), sample_indexer()});
}

/// Kimi K2-Thinking and later, whose routed experts are in groups of 32.
constexpr std::string_view kimi_k2_values = R"({
  "model_type": "kimi_k2", "num_nextn_predict_layers": 0, "hidden_size": 64, "moe_intermediate_size": 96})";

std::vector<Sample> v3_samples() {
  return {{.form = "fp8", .config = std::string(v3_config), .encoding = "block_fp8", .add_tensors = add_v3},
          {.form = "bf16", .config = std::string(v3_config), .add_tensors = add_v3},
          {.form = "kimi_k2_int4",
           .config = config_with(v3_config, kimi_k2_values),
           .expert_encoding = "int4_group32",
           .add_tensors = add_v3}};
}
std::vector<Sample> v32_samples() {
  return {{.form = "fp8", .config = std::string(v32_config), .encoding = "block_fp8", .add_tensors = add_v32},
          {.form = "bf16", .config = std::string(v32_config), .add_tensors = add_v32}};
}

}  // namespace

std::vector<Model> deepseek_v3() {
  return {
      {.family = "deepseek_v3",
       .model_types = {"deepseek_v3", "kimi_k2"},
       .layouts = {"automodel", "transformers", "torchtitan"},
       .weight_map = weight_map,
       .samples = v3_samples},
      {.family = "deepseek_v32",
       .model_types = {"deepseek_v32"},
       .layouts = {"automodel", "transformers"},
       .weight_map = weight_map,
       .samples = v32_samples},
  };
}

}  // namespace shardwright
