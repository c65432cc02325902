#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "planner/models/stored_encodings.h"

namespace shardwright {

/// Sizes of a model of the MiniMax M3 VL family. What is not here has one fixed relation to what is, as in
/// the released model: shared experts are as wide as routed ones, the indexer has a head for each key-value
/// head, the vision tower's MLP is four times as wide as the tower, and four patches of it are merged into
/// one.
struct MiniMaxM3Preset {
  std::string_view name;
  std::int64_t hidden;
  std::int64_t expert_intermediate;
  std::int64_t dense_intermediate;
  std::int64_t experts;
  std::int64_t layers;
  std::int64_t
      dense_layers;  ///< the first so many layers have a dense MLP and no indexer, all others experts
  std::int64_t heads;
  std::int64_t key_value_heads;
  std::int64_t head_dim;
  std::int64_t vocabulary;
  std::int64_t mtp_modules;
  std::int64_t vision_layers;
  std::int64_t vision_hidden;
  std::int64_t max_file_bytes;  ///< of tensors; such that even the smallest preset makes several files
};

/// tiny, small, bench and full, which is the released model.
std::span<const MiniMaxM3Preset> minimax_m3_presets();

/// Nothing if there is no such preset.
const MiniMaxM3Preset* find_minimax_m3_preset(std::string_view name);

/// How a release of MiniMax M3 stores its routed experts, and the rest of what it quantizes.
struct MiniMaxM3Encodings {
  StoredEncoding experts;
  StoredEncoding rest;
};

/// As the first release has them, or with this encoding: one of four bits is of routed experts alone, as in
/// the third. Throws as stored_encoding_named.
MiniMaxM3Encodings minimax_m3_encodings(std::string_view name = "mxfp8");

/// All tensors of a checkpoint of such a model, under their Hugging Face names, in the order of the model's
/// layers: what is quantized is followed by its scales. The released model's are MXFP8.
std::vector<NamedShape> minimax_m3_checkpoint(const MiniMaxM3Preset& preset,
                                              const MiniMaxM3Encodings& encodings = minimax_m3_encodings());

/// The config.json of such a checkpoint.
std::string minimax_m3_config(const MiniMaxM3Preset& preset,
                              const MiniMaxM3Encodings& encodings = minimax_m3_encodings());

}  // namespace shardwright
