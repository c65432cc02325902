#include "planner/models/minimax_m3_presets.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

namespace shardwright {

namespace {

constexpr std::int64_t KB = 1000;
constexpr std::int64_t MB = 1000 * KB;
constexpr std::int64_t GB = 1000 * MB;

// name, hidden, expert and dense intermediate, experts, layers (dense), heads/kv x dim, vocabulary, MTP,
// vision layers x hidden, file size
constexpr MiniMaxM3Preset presets[] = {
    {"tiny", 64, 32, 96, 4, 3, 1, 4, 2, 16, 128, 1, 2, 32, 150 * KB},
    {"small", 512, 256, 1024, 16, 5, 2, 8, 2, 64, 4096, 1, 2, 160, 12 * MB},
    {"bench", 2048, 1024, 4096, 32, 10, 3, 16, 4, 128, 32000, 1, 2, 640, 500 * MB},
    {"full", 6144, 3072, 12288, 128, 60, 3, 64, 4, 128, 200064, 1, 32, 1280, 5 * GB},
};

constexpr std::int64_t vision_widening = 4;  // of the vision tower's MLP
constexpr std::int64_t merged_patches = 4;   // 2 x 2
constexpr std::int64_t image_channels = 3;
constexpr std::int64_t frames_per_patch = 2;
constexpr std::int64_t patch_size = 14;

struct Checkpoint {
  const MiniMaxM3Encodings& encodings;
  std::vector<NamedShape> tensors;

  void plain(const std::string& name, Shape shape, DType dtype = DType::BF16) {
    tensors.push_back({name, dtype, std::move(shape)});
  }
  void expert(const std::string& name, std::int64_t out, std::int64_t in) {
    add_stored(tensors, encodings.experts, name + ".weight", {out, in});
  }
  void scaled(const std::string& name, std::int64_t out, std::int64_t in) {
    add_stored(tensors, encodings.rest, name + ".weight", {out, in});
  }
  void with_bias(const std::string& name, Shape shape) {
    const std::int64_t out = shape.front();
    plain(name + ".weight", std::move(shape));
    plain(name + ".bias", {out});
  }
};

void add_attention(Checkpoint& checkpoint, const MiniMaxM3Preset& sizes, const std::string& prefix,
                   bool indexed) {
  checkpoint.scaled(prefix + "q_proj", sizes.heads * sizes.head_dim, sizes.hidden);
  checkpoint.scaled(prefix + "k_proj", sizes.key_value_heads * sizes.head_dim, sizes.hidden);
  checkpoint.scaled(prefix + "v_proj", sizes.key_value_heads * sizes.head_dim, sizes.hidden);
  checkpoint.scaled(prefix + "o_proj", sizes.hidden, sizes.heads * sizes.head_dim);
  checkpoint.plain(prefix + "q_norm.weight", {sizes.head_dim});
  checkpoint.plain(prefix + "k_norm.weight", {sizes.head_dim});
  if (!indexed) return;
  checkpoint.plain(prefix + "index_q_proj.weight", {sizes.key_value_heads * sizes.head_dim, sizes.hidden});
  checkpoint.plain(prefix + "index_k_proj.weight", {sizes.head_dim, sizes.hidden});
  checkpoint.plain(prefix + "index_q_norm.weight", {sizes.head_dim});
  checkpoint.plain(prefix + "index_k_norm.weight", {sizes.head_dim});
}

void add_gated_mlp(Checkpoint& checkpoint, const std::string& prefix, std::int64_t hidden,
                   std::int64_t intermediate) {
  checkpoint.scaled(prefix + "gate_proj", intermediate, hidden);
  checkpoint.scaled(prefix + "up_proj", intermediate, hidden);
  checkpoint.scaled(prefix + "down_proj", hidden, intermediate);
}

void add_experts(Checkpoint& checkpoint, const MiniMaxM3Preset& sizes, const std::string& prefix) {
  checkpoint.plain(prefix + "gate.weight", {sizes.experts, sizes.hidden});
  checkpoint.plain(prefix + "e_score_correction_bias", {sizes.experts}, DType::F32);
  for (std::int64_t expert = 0; expert < sizes.experts; ++expert) {
    const std::string name = prefix + "experts." + std::to_string(expert) + ".";
    checkpoint.expert(name + "w1", sizes.expert_intermediate, sizes.hidden);
    checkpoint.expert(name + "w3", sizes.expert_intermediate, sizes.hidden);
    checkpoint.expert(name + "w2", sizes.hidden, sizes.expert_intermediate);
  }
  add_gated_mlp(checkpoint, prefix + "shared_experts.", sizes.hidden, sizes.expert_intermediate);
}

void add_layer(Checkpoint& checkpoint, const MiniMaxM3Preset& sizes, const std::string& prefix, bool dense) {
  add_attention(checkpoint, sizes, prefix + "self_attn.", !dense);
  if (dense) {
    add_gated_mlp(checkpoint, prefix + "mlp.", sizes.hidden, sizes.dense_intermediate);
  } else {
    add_experts(checkpoint, sizes, prefix + "block_sparse_moe.");
  }
  checkpoint.plain(prefix + "input_layernorm.weight", {sizes.hidden});
  checkpoint.plain(prefix + "post_attention_layernorm.weight", {sizes.hidden});
}

void add_text(Checkpoint& checkpoint, const MiniMaxM3Preset& sizes) {
  const std::string model = "language_model.model.";
  checkpoint.plain(model + "embed_tokens.weight", {sizes.vocabulary, sizes.hidden});
  for (std::int64_t layer = 0; layer < sizes.layers; ++layer) {
    add_layer(checkpoint, sizes, model + "layers." + std::to_string(layer) + ".", layer < sizes.dense_layers);
  }
  checkpoint.plain(model + "norm.weight", {sizes.hidden});
  for (std::int64_t module = 0; module < sizes.mtp_modules; ++module) {
    const std::string prefix = model + "mtp.layers." + std::to_string(module) + ".";
    checkpoint.plain(prefix + "enorm.weight", {sizes.hidden});
    checkpoint.plain(prefix + "hnorm.weight", {sizes.hidden});
    checkpoint.scaled(prefix + "eh_proj", sizes.hidden, 2 * sizes.hidden);
    add_layer(checkpoint, sizes, prefix + "transformer_layer.", false);
    checkpoint.plain(prefix + "final_layernorm.weight", {sizes.hidden});
  }
  checkpoint.plain("language_model.lm_head.weight", {sizes.vocabulary, sizes.hidden});
}

void add_vision(Checkpoint& checkpoint, const MiniMaxM3Preset& sizes) {
  const std::int64_t width = sizes.vision_hidden;
  const std::string tower = "vision_tower.vision_model.";
  checkpoint.plain(tower + "embeddings.patch_embedding.weight",
                   {width, image_channels, frames_per_patch, patch_size, patch_size});
  checkpoint.with_bias(tower + "pre_layrnorm", {width});  // the released model's own spelling
  for (std::int64_t layer = 0; layer < sizes.vision_layers; ++layer) {
    const std::string prefix = tower + "encoder.layers." + std::to_string(layer) + ".";
    checkpoint.with_bias(prefix + "layer_norm1", {width});
    for (const char* projection : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
      checkpoint.with_bias(prefix + "self_attn." + projection, {width, width});
    }
    checkpoint.with_bias(prefix + "layer_norm2", {width});
    checkpoint.with_bias(prefix + "mlp.fc1", {vision_widening * width, width});
    checkpoint.with_bias(prefix + "mlp.fc2", {width, vision_widening * width});
  }
  checkpoint.with_bias("multi_modal_projector.linear_1", {sizes.hidden, width});
  checkpoint.with_bias("multi_modal_projector.linear_2", {sizes.hidden, sizes.hidden});
  checkpoint.with_bias("patch_merge_mlp.linear_1", {sizes.hidden, merged_patches * sizes.hidden});
  checkpoint.with_bias("patch_merge_mlp.linear_2", {sizes.hidden, sizes.hidden});
}

}  // namespace

std::span<const MiniMaxM3Preset> minimax_m3_presets() { return presets; }

const MiniMaxM3Preset* find_minimax_m3_preset(std::string_view name) {
  const auto found = std::find_if(std::begin(presets), std::end(presets),
                                  [&](const auto& preset) { return preset.name == name; });
  return found == std::end(presets) ? nullptr : found;
}

MiniMaxM3Encodings minimax_m3_encodings(std::string_view name) {
  const StoredEncoding& experts = stored_encoding_named(name);
  return {experts, experts.is_of_experts() ? stored_encoding_named("mxfp8") : experts};
}

std::vector<NamedShape> minimax_m3_checkpoint(const MiniMaxM3Preset& preset,
                                              const MiniMaxM3Encodings& encodings) {
  Checkpoint checkpoint{encodings, {}};
  add_text(checkpoint, preset);
  add_vision(checkpoint, preset);
  return std::move(checkpoint.tensors);
}

std::string minimax_m3_config(const MiniMaxM3Preset& preset, const MiniMaxM3Encodings& encodings) {
  const bool are_alike = encodings.experts.name == encodings.rest.name;
  using Json = nlohmann::ordered_json;
  Json mlp_kinds = Json::array();
  Json attention_kinds = Json::array();
  Json layer_has_experts = Json::array();
  for (std::int64_t layer = 0; layer < preset.layers; ++layer) {
    const bool dense = layer < preset.dense_layers;
    mlp_kinds.push_back(dense ? "dense" : "sparse");
    attention_kinds.push_back(dense ? "full_attention" : "minimax_m3_sparse");
    layer_has_experts.push_back(dense ? 0 : 1);
  }
  const Json text = {
      {"model_type", "minimax_m3_vl_text"},
      {"vocab_size", preset.vocabulary},
      {"hidden_size", preset.hidden},
      {"intermediate_size", preset.expert_intermediate},
      {"dense_intermediate_size", preset.dense_intermediate},
      {"shared_intermediate_size", preset.expert_intermediate},
      {"num_hidden_layers", preset.layers},
      {"num_attention_heads", preset.heads},
      {"num_key_value_heads", preset.key_value_heads},
      {"head_dim", preset.head_dim},
      {"rotary_dim", preset.head_dim / 2},
      {"num_local_experts", preset.experts},
      {"num_experts_per_tok", std::min<std::int64_t>(4, preset.experts)},
      {"n_shared_experts", 1},
      {"num_mtp_modules", preset.mtp_modules},
      {"index_n_heads", preset.key_value_heads},
      {"index_head_dim", preset.head_dim},
      {"mlp_layer_types", mlp_kinds},
      {"moe_layer_freq", layer_has_experts},
      {"layer_types", attention_kinds},
      {"bos_token_id", preset.vocabulary - 30},
      {"eos_token_id", preset.vocabulary - 44},
      {"tie_word_embeddings", false},
  };
  const Json vision = {
      {"model_type", "minimax_m3_vl_vision"},
      {"hidden_size", preset.vision_hidden},
      {"intermediate_size", vision_widening * preset.vision_hidden},
      {"num_hidden_layers", preset.vision_layers},
      {"num_attention_heads", std::max<std::int64_t>(2, preset.vision_hidden / 80)},
      {"num_channels", image_channels},
      {"patch_size", patch_size},
      {"temporal_patch_size", frames_per_patch},
      {"spatial_merge_size", 2},
  };
  const Json config = {
      {"architectures", {"MiniMaxM3SparseForConditionalGeneration"}},
      {"model_type", "minimax_m3_vl"},
      {"dtype", "bfloat16"},
      {"projector_hidden_size", preset.hidden},
      {"image_token_index", preset.vocabulary - 39},
      {"video_token_index", preset.vocabulary - 38},
      {"tie_word_embeddings", false},
      {"text_config", text},
      {"vision_config", vision},
      {"quantization_config",
       quantization_config(&encodings.experts, are_alike ? &encodings.experts : &encodings.rest)},
  };
  return config.dump(2) + "\n";
}

}  // namespace shardwright
