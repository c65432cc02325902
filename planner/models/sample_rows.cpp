/// What most families' checkpoints have in common. Source of names and shapes: the models of
/// transformers 5.23 and the releases that families/ speaks of.

#include <string>

#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr auto scaled = StoredAs::scaled;

constexpr SampleRow attention[] = {
    {"q_proj.weight", "heads*head_dim hidden", scaled},
    {"k_proj.weight", "kv_heads*head_dim hidden", scaled},
    {"v_proj.weight", "kv_heads*head_dim hidden", scaled},
    {"o_proj.weight", "hidden heads*head_dim", scaled},
};
constexpr SampleRow attention_biases[] = {{"q_proj.bias", "heads*head_dim"},
                                          {"k_proj.bias", "kv_heads*head_dim"},
                                          {"v_proj.bias", "kv_heads*head_dim"}};
constexpr SampleRow head_norms[] = {{"q_norm.weight", "head_dim"}, {"k_norm.weight", "head_dim"}};
constexpr SampleRow latent_attention[] = {
    {"q_a_proj.weight", "q_lora_rank hidden", scaled},
    {"q_a_layernorm.weight", "q_lora_rank"},
    {"q_b_proj.weight", "heads*qk_nope_head_dim+heads*qk_rope_head_dim q_lora_rank", scaled},
    {"kv_a_proj_with_mqa.weight", "kv_lora_rank+qk_rope_head_dim hidden", scaled},
    {"kv_a_layernorm.weight", "kv_lora_rank"},
    {"kv_b_proj.weight", "heads*qk_nope_head_dim+heads*v_head_dim kv_lora_rank", scaled},
    {"o_proj.weight", "hidden heads*v_head_dim", scaled},
};
constexpr SampleRow indexer[] = {
    {"indexer.k_norm.weight", "index_head_dim"},
    {"indexer.k_norm.bias", "index_head_dim"},
    {"indexer.weights_proj.weight", "index_n_heads hidden"},
    {"indexer.wk.weight", "index_head_dim hidden", scaled},
    {"indexer.wq_b.weight", "index_n_heads*index_head_dim q_lora_rank", scaled},
};
constexpr SampleRow gated_attention[] = {
    {"q_proj.weight", "2*heads*head_dim hidden", scaled},  // queries and gates
    {"k_proj.weight", "kv_heads*head_dim hidden", scaled},
    {"v_proj.weight", "kv_heads*head_dim hidden", scaled},
    {"o_proj.weight", "hidden heads*head_dim", scaled},
    {"q_norm.weight", "head_dim"},
    {"k_norm.weight", "head_dim"},
};
constexpr SampleRow linear_attention[] = {
    {"A_log", "linear_num_value_heads"},
    {"dt_bias", "linear_num_value_heads"},
    {"conv1d.weight",
     "2*linear_num_key_heads*linear_key_head_dim+linear_num_value_heads*linear_value_head_dim 1 "
     "linear_conv_kernel_dim"},
    {"norm.weight", "linear_value_head_dim"},
    {"out_proj.weight", "hidden linear_num_value_heads*linear_value_head_dim", scaled},
};
constexpr SampleRow norms[] = {{"input_layernorm.weight", "hidden"},
                               {"post_attention_layernorm.weight", "hidden"}};
constexpr SampleRow mlp[] = {
    {"gate_proj.weight", "inter hidden", scaled},
    {"up_proj.weight", "inter hidden", scaled},
    {"down_proj.weight", "hidden inter", scaled},
};
constexpr SampleRow expert[] = {
    {"gate_proj.weight", "expert_inter hidden", scaled},
    {"up_proj.weight", "expert_inter hidden", scaled},
    {"down_proj.weight", "hidden expert_inter", scaled},
};
constexpr SampleRow numbered_expert[] = {
    {"w1.weight", "expert_inter hidden", scaled},
    {"w3.weight", "expert_inter hidden", scaled},
    {"w2.weight", "hidden expert_inter", scaled},
};
constexpr SampleRow shared_expert[] = {
    {"gate_proj.weight", "shared_inter hidden", scaled},
    {"up_proj.weight", "shared_inter hidden", scaled},
    {"down_proj.weight", "hidden shared_inter", scaled},
};
constexpr SampleRow stacked_experts[] = {
    {"gate_up_proj", "experts 2*expert_inter hidden"},
    {"down_proj", "experts hidden expert_inter"},
};
constexpr SampleRow router[] = {{"gate.weight", "experts hidden"}};
constexpr SampleRow router_bias[] = {{"e_score_correction_bias", "experts", StoredAs::f32}};
constexpr SampleRow mtp[] = {{"enorm.weight", "hidden"},
                             {"hnorm.weight", "hidden"},
                             {"eh_proj.weight", "hidden 2*hidden"},
                             {"shared_head.norm.weight", "hidden"}};

constexpr SampleRow mtp_beside[] = {{"fc.weight", "hidden 2*hidden"},
                                    {"norm.weight", "hidden"},
                                    {"pre_fc_norm_embedding.weight", "hidden"},
                                    {"pre_fc_norm_hidden.weight", "hidden"}};

constexpr SampleRow around_vision[] = {
    {"patch_embed.proj.weight", "hidden_size in_channels temporal_patch_size patch_size patch_size"},
    {"patch_embed.proj.bias", "hidden_size"},
    {"pos_embed.weight", "num_position_embeddings hidden_size"},
    {"merger.norm.weight", "hidden_size"},
    {"merger.norm.bias", "hidden_size"},
};
constexpr SampleRow merger[] = {
    {"linear_fc1.weight",
     "hidden_size*spatial_merge_size*spatial_merge_size "
     "hidden_size*spatial_merge_size*spatial_merge_size"},
    {"linear_fc1.bias", "hidden_size*spatial_merge_size*spatial_merge_size"},
    {"linear_fc2.weight", "out_hidden_size hidden_size*spatial_merge_size*spatial_merge_size"},
    {"linear_fc2.bias", "out_hidden_size"},
};
constexpr SampleRow norm_of_merged[] = {{"norm.weight", "hidden_size*spatial_merge_size*spatial_merge_size"},
                                        {"norm.bias", "hidden_size*spatial_merge_size*spatial_merge_size"}};
constexpr SampleRow vision_block[] = {
    {"norm1.weight", "hidden_size"},
    {"norm1.bias", "hidden_size"},
    {"attn.qkv.weight", "3*hidden_size hidden_size"},
    {"attn.qkv.bias", "3*hidden_size"},
    {"attn.proj.weight", "hidden_size hidden_size"},
    {"attn.proj.bias", "hidden_size"},
    {"norm2.weight", "hidden_size"},
    {"norm2.bias", "hidden_size"},
    {"mlp.linear_fc1.weight", "intermediate_size hidden_size"},
    {"mlp.linear_fc1.bias", "intermediate_size"},
    {"mlp.linear_fc2.weight", "hidden_size intermediate_size"},
    {"mlp.linear_fc2.bias", "hidden_size"},
};

}  // namespace

std::span<const SampleRow> sample_attention() { return attention; }
std::span<const SampleRow> sample_attention_biases() { return attention_biases; }
std::span<const SampleRow> sample_head_norms() { return head_norms; }
std::span<const SampleRow> sample_latent_attention() { return latent_attention; }
std::span<const SampleRow> sample_mlp() { return mlp; }
std::span<const SampleRow> sample_expert() { return expert; }
std::span<const SampleRow> sample_numbered_expert() { return numbered_expert; }
std::span<const SampleRow> sample_shared_expert() { return shared_expert; }
std::span<const SampleRow> sample_stacked_experts() { return stacked_experts; }
std::span<const SampleRow> sample_indexer() { return indexer; }
std::span<const SampleRow> sample_mtp_beside() { return mtp_beside; }
std::span<const SampleRow> sample_mtp() { return mtp; }

std::string layer_prefix(std::string_view model, std::int64_t layer) {
  return std::string(model) + "layers." + std::to_string(layer) + ".";
}

void add_sample_ends(SampleTensors& tensors, const std::string& model, const std::string& head) {
  constexpr SampleRow ends[] = {{"embed_tokens.weight", "vocab hidden"}, {"norm.weight", "hidden"}};
  constexpr SampleRow apart[] = {{"", "vocab hidden"}};
  tensors.add(model, ends);
  if (!tensors.is("tie_word_embeddings")) tensors.add(head, apart);
}

void add_sample_mixture(SampleTensors& tensors, const std::string& module) {
  tensors.add(module, router);
  tensors.add(module + "experts.{expert}.", expert);
}

void add_sample_layer(SampleTensors& tensors, const std::string& prefix, AttentionRows attention) {
  tensors.add(prefix, norms);
  for (const std::span<const SampleRow> rows : attention) tensors.add(prefix + "self_attn.", rows);
}

void add_dense_decoder(SampleTensors& tensors, const std::string& model, AttentionRows attention) {
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    add_sample_layer(tensors, layer_prefix(model, layer), attention);
    tensors.add(layer_prefix(model, layer) + "mlp.", mlp);
  }
}

void add_mixture_decoder(SampleTensors& tensors, const std::string& model, AttentionRows attention) {
  const std::int64_t layers = tensors.number("num_hidden_layers");
  const std::int64_t dense = tensors.number_or_none("first_k_dense_replace");
  const bool has_shared_experts = tensors.number_or_none("n_shared_experts") != 0;
  for (std::int64_t layer = 0; layer < layers + tensors.number_or_none("num_nextn_predict_layers"); ++layer) {
    const std::string prefix = layer_prefix(model, layer);
    add_sample_layer(tensors, prefix, attention);
    if (layer >= layers) tensors.add(prefix, mtp);
    if (layer < dense) {
      tensors.add(prefix + "mlp.", mlp);
      continue;
    }
    add_sample_mixture(tensors, prefix + "mlp.");
    if (!has_shared_experts) continue;
    tensors.add(prefix + "mlp.gate.", router_bias);
    tensors.add(prefix + "mlp.shared_experts.", shared_expert);
  }
}

void add_sample_gated_layer(SampleTensors& tensors, const std::string& prefix, bool is_linear) {
  tensors.add(prefix, norms);
  if (is_linear) {
    tensors.add(prefix + "linear_attn.", linear_attention);
  } else {
    tensors.add(prefix + "self_attn.", gated_attention);
  }
}

void add_sample_gated_shared_expert(SampleTensors& tensors, const std::string& module) {
  constexpr SampleRow gate[] = {{"shared_expert_gate.weight", "1 hidden"}};
  tensors.add(module + "shared_expert.", shared_expert);
  tensors.add(module, gate);
}

void add_sample_vision(SampleTensors& tensors) {
  const std::string tower = "model.visual.";
  constexpr std::string_view part = "vision_config";
  tensors.add(tower, around_vision, part);
  tensors.add(tower + "merger.", merger, part);
  for (std::int64_t k = 0; k < tensors.entries("deepstack_visual_indexes", part); ++k) {
    const std::string prefix = tower + "deepstack_merger_list." + std::to_string(k) + ".";
    tensors.add(prefix, merger, part);
    tensors.add(prefix, norm_of_merged, part);
  }
  for (std::int64_t block = 0; block < tensors.number("depth", part); ++block)
    tensors.add(tower + "blocks." + std::to_string(block) + ".", vision_block, part);
}

}  // namespace shardwright
