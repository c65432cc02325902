/// DeepSeek V4. Source of names and shapes: the released names, DeepseekV4ForCausalLM of transformers 5.23,
/// which has no MTP, and the adapter of nemo-automodel 0.7.0. Files begin names with "model." or do not, and
/// transformers stores some of those outside the layers under its own names. Layers that route by hash have
/// no bias of the gate.

#include <array>
#include <string>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array layer = {
    Row{"attn_norm.{*}", "input_layernorm.{*}"},
    Row{"ffn_norm.{*}", "post_attention_layernorm.{*}"},
    Row{"ffn.gate.bias", "mlp.gate.e_score_correction_bias"},
    Row{"ffn.gate.{*}", "mlp.gate.{*}"},
    Row{"ffn.shared_experts.w1.{*}", "mlp.shared_experts.gate_proj.{*}"},
    Row{"ffn.shared_experts.w3.{*}", "mlp.shared_experts.up_proj.{*}"},
    Row{"ffn.shared_experts.w2.{*}", "mlp.shared_experts.down_proj.{*}"},
    Row{"ffn.fc1_latent_proj.{*}", "mlp.fc1_latent_proj.{*}"},
    Row{"ffn.fc2_latent_proj.{*}", "mlp.fc2_latent_proj.{*}"},
    Row{"hc_attn_base", "attn_hc.base"},
    Row{"hc_attn_fn", "attn_hc.fn"},
    Row{"hc_attn_scale", "attn_hc.scale"},
    Row{"hc_ffn_base", "ffn_hc.base"},
    Row{"hc_ffn_fn", "ffn_hc.fn"},
    Row{"hc_ffn_scale", "ffn_hc.scale"},
};
constexpr std::array automodel = {
    Row{"attn.attn_sink", "self_attn.sinks_param.weight"},
    Row{"attn.indexer.compressor.norm.{*}", "self_attn.compressor.indexer.kv_norm.{*}"},
    Row{"attn.indexer.compressor.ape", "self_attn.compressor.indexer.ape_param.weight"},
    Row{"attn.indexer.compressor.wgate.{*}", "self_attn.compressor.indexer.wgate.{*}"},
    Row{"attn.indexer.compressor.wkv.{*}", "self_attn.compressor.indexer.wkv.{*}"},
    Row{"attn.indexer.{*}", "self_attn.compressor.indexer.{*}"},
    Row{"attn.compressor.norm.{*}", "self_attn.compressor.kv_norm.{*}"},
    Row{"attn.compressor.ape", "self_attn.compressor.ape_param.weight"},
    Row{"attn.{*}", "self_attn.{*}"},
};
constexpr std::array automodel_mtp = {
    Row{"hc_head_fn", "hc_head.hc_fn"},
    Row{"hc_head_base", "hc_head.hc_base"},
    Row{"hc_head_scale", "hc_head.hc_scale"},
    Row{"{*}", "{*}"},
};
/// Of releases that see: nemo-automodel's model has them or not.
constexpr std::array<std::string_view, 6> vision_of_automodel = {"vision.{*}", "aligner.{*}",   "image_start",
                                                                 "image_end",  "image_newline", "image_pad"};
constexpr std::array transformers = {
    Row{"attn.attn_sink", "self_attn.sinks"},
    Row{"attn.norm.{*}", "self_attn.kv_norm.{*}"},
    Row{"attn.wq_a.{*}", "self_attn.q_a_proj.{*}"},
    Row{"attn.wq_b.{*}", "self_attn.q_b_proj.{*}"},
    Row{"attn.q_norm.{*}", "self_attn.q_a_norm.{*}"},
    Row{"attn.wkv.{*}", "self_attn.kv_proj.{*}"},
    Row{"attn.wo_a.{*}", "self_attn.o_a_proj.{*}"},
    Row{"attn.wo_b.{*}", "self_attn.o_b_proj.{*}"},
    Row{"attn.compressor.norm.{*}", "self_attn.compressor.kv_norm.{*}"},
    Row{"attn.compressor.ape", "self_attn.compressor.position_bias"},
    Row{"attn.compressor.wgate.{*}", "self_attn.compressor.gate_proj.{*}"},
    Row{"attn.compressor.wkv.{*}", "self_attn.compressor.kv_proj.{*}"},
    Row{"attn.indexer.compressor.norm.{*}", "self_attn.compressor.indexer.kv_norm.{*}"},
    Row{"attn.indexer.compressor.ape", "self_attn.compressor.indexer.position_bias"},
    Row{"attn.indexer.compressor.wgate.{*}", "self_attn.compressor.indexer.gate_proj.{*}"},
    Row{"attn.indexer.compressor.wkv.{*}", "self_attn.compressor.indexer.kv_proj.{*}"},
    Row{"attn.indexer.wq_b.{*}", "self_attn.compressor.indexer.q_b_proj.{*}"},
    Row{"attn.indexer.weights_proj.{*}", "self_attn.compressor.indexer.scorer.weights_proj.{*}"},
};

constexpr std::array released_outside = {
    Row{"embed.weight", "model.embed_tokens.weight"},
    Row{"norm.weight", "model.norm.weight"},
    Row{"head.weight", "lm_head.weight"},
    Row{"hc_head_fn", "model.hc_head.hc_fn"},
    Row{"hc_head_base", "model.hc_head.hc_base"},
    Row{"hc_head_scale", "model.hc_head.hc_scale"},
};
constexpr std::array saved_outside = {
    Row{"embed_tokens.weight", "model.embed_tokens.weight"},
    Row{"hc_head.hc_fn", "model.hc_head.hc_fn"},
    Row{"hc_head.hc_base", "model.hc_head.hc_base"},
    Row{"hc_head.hc_scale", "model.hc_head.hc_scale"},
};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  if (any_begins(catalog, "model.layers."))
    map.dialect = {{"head.weight", "head.weight"}, {"mtp.", "mtp."}, {"", "model."}};
  const auto add_layer = [&](const std::string& hf, const std::string& native) {
    add_rules(map.rules, numbered_experts(layout), hf + "ffn.experts.", native + "mlp.experts.");
    add_rules(map.rules, layer, hf, native);
    add_rules(map.rules, layout == "automodel" ? std::span<const Row>(automodel) : transformers, hf, native);
  };
  add_layer("layers.{layer}.", "model.layers.{layer}.");
  if (layout == "automodel") {
    add_rules(map.rules, vision_of_automodel, "", "model.");
    add_layer("mtp.{layer}.", "mtp.layers.{layer}.");
    add_rules(map.rules, automodel_mtp, "mtp.{layer}.", "mtp.layers.{layer}.");
  } else {
    map.without_place.emplace_back("mtp.{*}");
  }
  add_rules(map.rules, released_outside, "", "");
  add_rules(map.rules, saved_outside, "", "", /*known=*/true, /*alternative=*/1);
  map.layers.emplace_back("layers.{layer}.{*}");
  for (const char* after : {"norm.{*}", "head.{*}", "hc_head_{*}", "mtp.{*}"})
    map.after_layers.emplace_back(after);
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "num_key_value_heads": 1,
  "intermediate_size": null, "q_lora_rank": 36, "o_lora_rank": 10, "o_groups": 2, "qk_rope_head_dim": 4,
  "moe_intermediate_size": 40, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2,
  "index_head_dim": 6, "index_n_heads": 2, "hc_mult": 4, "num_nextn_predict_layers": 1,
  "num_hidden_layers": 3,
  "layer_types": ["sliding_attention", "heavily_compressed_attention", "compressed_sparse_attention"],
  "mlp_layer_types": ["hash_moe", "moe", "moe"],
  "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}})";

constexpr SampleRow sample_layer[] = {
    {"attn_norm.weight", "hidden"},
    {"ffn_norm.weight", "hidden"},
    {"attn.attn_sink", "heads"},
    {"attn.norm.weight", "head_dim"},
    {"attn.q_norm.weight", "q_lora_rank"},
    {"attn.wkv.weight", "head_dim hidden", StoredAs::scaled},
    {"attn.wq_a.weight", "q_lora_rank hidden", StoredAs::scaled},
    {"attn.wq_b.weight", "heads*head_dim q_lora_rank", StoredAs::scaled},
    {"attn.wo_a.weight", "o_groups*o_lora_rank 2*head_dim", StoredAs::scaled},
    {"attn.wo_b.weight", "hidden o_groups*o_lora_rank", StoredAs::scaled},
    {"hc_attn_base", "2*hc_mult+hc_mult*hc_mult"},
    {"hc_attn_fn", "2*hc_mult+hc_mult*hc_mult hc_mult*hidden"},
    {"hc_attn_scale", "3"},
    {"hc_ffn_base", "2*hc_mult+hc_mult*hc_mult"},
    {"hc_ffn_fn", "2*hc_mult+hc_mult*hc_mult hc_mult*hidden"},
    {"hc_ffn_scale", "3"},
    {"ffn.gate.weight", "experts hidden"},
};
constexpr SampleRow heavily_compressed[] = {
    {"ape", "heavily_compressed_attention head_dim"},
    {"norm.weight", "head_dim"},
    {"wgate.weight", "head_dim hidden"},
    {"wkv.weight", "head_dim hidden"},
};
constexpr SampleRow sparse[] = {
    {"compressor.ape", "compressed_sparse_attention 2*head_dim"},
    {"compressor.norm.weight", "head_dim"},
    {"compressor.wgate.weight", "2*head_dim hidden"},
    {"compressor.wkv.weight", "2*head_dim hidden"},
    {"indexer.compressor.ape", "compressed_sparse_attention 2*index_head_dim"},
    {"indexer.compressor.norm.weight", "index_head_dim"},
    {"indexer.compressor.wgate.weight", "2*index_head_dim hidden"},
    {"indexer.compressor.wkv.weight", "2*index_head_dim hidden"},
    {"indexer.weights_proj.weight", "index_n_heads hidden"},
    {"indexer.wq_b.weight", "index_n_heads*index_head_dim q_lora_rank", StoredAs::scaled},
};
constexpr SampleRow sample_bias[] = {{"ffn.gate.bias", "experts", StoredAs::f32}};
constexpr SampleRow sample_hashes[] = {{"ffn.gate.tid2eid", "vocab num_experts_per_tok", StoredAs::i64}};
constexpr SampleRow sample_mixed[] = {
    {"hc_head_base", "hc_mult"}, {"hc_head_fn", "hc_mult hc_mult*hidden"}, {"hc_head_scale", "1"}};
constexpr SampleRow sample_outside[] = {
    {"embed.weight", "vocab hidden"}, {"norm.weight", "hidden"}, {"head.weight", "vocab hidden"}};
constexpr SampleRow sample_mtp_layer[] = {
    {"enorm.weight", "hidden"},
    {"hnorm.weight", "hidden"},
    {"norm.weight", "hidden"},
    {"e_proj.weight", "hidden hidden", StoredAs::scaled},
    {"h_proj.weight", "hidden hidden", StoredAs::scaled},
};

void add_sample_layer(SampleTensors& tensors, const std::string& prefix, bool is_by_hash) {
  tensors.add(prefix, sample_layer);
  tensors.add(prefix, is_by_hash ? std::span<const SampleRow>(sample_hashes) : sample_bias);
  tensors.add(prefix + "ffn.experts.{expert}.", sample_numbered_expert());
  tensors.add(prefix + "ffn.shared_experts.", sample_numbered_expert());
}

void add_tensors(SampleTensors& tensors) {
  tensors.add("", sample_outside);
  tensors.add("", sample_mixed);
  for (std::int64_t k = 0; k < tensors.number("num_hidden_layers"); ++k) {
    const std::string prefix = layer_prefix("", k);
    add_sample_layer(tensors, prefix, tensors.kind("mlp_layer_types", k) == "hash_moe");
    const std::string attention = tensors.kind("layer_types", k);
    if (attention == "heavily_compressed_attention")
      tensors.add(prefix + "attn.compressor.", heavily_compressed, "compress_rates");
    if (attention == "compressed_sparse_attention") tensors.add(prefix + "attn.", sparse, "compress_rates");
  }
  for (std::int64_t k = 0; k < tensors.number("num_nextn_predict_layers"); ++k) {
    const std::string prefix = "mtp." + std::to_string(k) + ".";
    add_sample_layer(tensors, prefix, /*is_by_hash=*/false);
    tensors.add(prefix, sample_mtp_layer);
    tensors.add(prefix, sample_mixed);
  }
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors},
          {.form = "fp4",
           .config = config_with(sample_config, R"({"hidden_size": 64, "moe_intermediate_size": 96})"),
           .encoding = "block_fp8_e8m0",
           .expert_encoding = "mxfp4_deepseek",
           .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> deepseek_v4() {
  return {{.family = "deepseek_v4",
           .model_types = {"deepseek_v4"},
           .layouts = {"automodel", "transformers"},
           .hf_marks = {"layers.{layer}.attn.attn_sink", "model.layers.{layer}.attn.attn_sink"},
           .text_names = {"", "model."},
           .lora_modules = "transformers",
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
