/// The tables of MiniMax M3, text and VL. Source of names and shapes: the seed documentation of
/// nemo_automodel.components.models.minimax_m3_vl and the released model's key lists (tests/data).

#include <algorithm>
#include <array>
#include <string>

#include "planner/models/models.h"

namespace shardwright {
namespace {

/// A row of the table, its names without the prefix of the section it stands in.
struct Row {
  std::string_view hf;
  std::string_view native;
  bool quantised = false;
  bool transposed = false;
  int part = 0;
  int parts = 1;
  int part_dimension = 0;
  bool known = true;
};

constexpr bool quantised = true;
constexpr bool transposed = true;

/// What a decoder layer holds, in the layout "automodel". Experts [experts, in, out], gate columns before up
/// columns.
constexpr std::array layer_rows_automodel = {
    Row{"input_layernorm.weight", "input_layernorm.weight"},
    Row{"post_attention_layernorm.weight", "post_attention_layernorm.weight"},
    Row{"self_attn.q_proj.weight", "self_attn.q_proj.weight", quantised},
    Row{"self_attn.k_proj.weight", "self_attn.k_proj.weight", quantised},
    Row{"self_attn.v_proj.weight", "self_attn.v_proj.weight", quantised},
    Row{"self_attn.o_proj.weight", "self_attn.o_proj.weight", quantised},
    Row{"self_attn.q_norm.weight", "self_attn.q_norm.weight"},
    Row{"self_attn.k_norm.weight", "self_attn.k_norm.weight"},
    Row{"self_attn.index_{*}", "self_attn.indexer.index_{*}"},
    Row{"mlp.gate_proj.weight", "mlp.gate_proj.weight", quantised},
    Row{"mlp.up_proj.weight", "mlp.up_proj.weight", quantised},
    Row{"mlp.down_proj.weight", "mlp.down_proj.weight", quantised},
    Row{"block_sparse_moe.gate.weight", "mlp.gate.weight"},
    Row{"block_sparse_moe.e_score_correction_bias", "mlp.gate.e_score_correction_bias"},
    Row{"block_sparse_moe.experts.{expert}.w1.weight", "mlp.experts.gate_and_up_projs", quantised, transposed,
        0, 2, 1},
    Row{"block_sparse_moe.experts.{expert}.w3.weight", "mlp.experts.gate_and_up_projs", quantised, transposed,
        1, 2, 1},
    Row{"block_sparse_moe.experts.{expert}.w2.weight", "mlp.experts.down_projs", quantised, transposed},
    Row{"block_sparse_moe.shared_experts.gate_proj.weight", "shared_experts.gate_proj.weight", quantised},
    Row{"block_sparse_moe.shared_experts.up_proj.weight", "shared_experts.up_proj.weight", quantised},
    Row{"block_sparse_moe.shared_experts.down_proj.weight", "shared_experts.down_proj.weight", quantised},
};

/// What lies outside the layers, in the layout "automodel".
constexpr std::array model_rows_automodel = {
    Row{"language_model.model.embed_tokens.weight", "model.embed_tokens.weight"},
    Row{"language_model.model.norm.weight", "model.norm.weight"},
    Row{"language_model.lm_head.weight", "lm_head.weight"},
    Row{"language_model.model.mtp.layers.{layer}.enorm.weight", "model.mtp.layers.{layer}.enorm.weight"},
    Row{"language_model.model.mtp.layers.{layer}.hnorm.weight", "model.mtp.layers.{layer}.hnorm.weight"},
    // FP8 in the released files, although the documented rule of names does not list it.
    Row{"language_model.model.mtp.layers.{layer}.eh_proj.weight", "model.mtp.layers.{layer}.eh_proj.weight"},
    Row{"language_model.model.mtp.layers.{layer}.final_layernorm.weight",
        "model.mtp.layers.{layer}.final_layernorm.weight"},
    Row{"vision_tower.vision_model.{*}", "vision_tower.vision_model.{*}"},
    Row{"multi_modal_projector.{*}", "vision_tower.multi_modal_projector.{*}"},
    Row{"patch_merge_mlp.{*}", "vision_tower.patch_merge_mlp.{*}"},
};

/// All else in the text part keeps its name: finds the source of a tensor that the trainer has, but does not
/// make an unexpected tensor of a checkpoint a known one.
constexpr std::array catch_all_rows = {
    Row{"language_model.model.{*}", "model.{*}", false, false, 0, 1, 0, false},
    Row{"language_model.lm_head.{*}", "lm_head.{*}", false, false, 0, 1, 0, false},
};

/// Where the rows of a decoder layer apply: {HF prefix, native prefix}. An MTP module holds a whole layer.
constexpr std::array<std::pair<std::string_view, std::string_view>, 2> layer_prefixes = {{
    {"language_model.model.layers.{layer}.", "model.layers.{layer}."},
    {"language_model.model.mtp.layers.{layer}.transformer_layer.",
     "model.mtp.layers.{layer}.transformer_layer."},
}};

/// MTP keys outside the text part belong to no layout.
constexpr std::array<std::string_view, 3> ignored = {"mtp.{*}", "model.mtp.{*}", "vision_tower.mtp.{*}"};

Rule rule_of(const Row& row, std::string_view hf_prefix, std::string_view native_prefix) {
  return {NamePattern(std::string(hf_prefix) + std::string(row.hf)),
          NamePattern(std::string(native_prefix) + std::string(row.native)),
          row.transposed,
          row.part,
          row.parts,
          row.part_dimension,
          row.quantised,
          row.known};
}

/// A text-only checkpoint has no "language_model." and may lack "model." too.
Dialect dialect_of(const Catalog& catalog) {
  const auto has_prefix = [&](std::string_view prefix) {
    return std::any_of(catalog.tensors.begin(), catalog.tensors.end(),
                       [&](const SourceTensor& tensor) { return tensor.name.starts_with(prefix); });
  };
  if (catalog.tensors.empty() || has_prefix("language_model.")) return {};
  Dialect dialect{{"vision_tower.", "vision_tower."},
                  {"multi_modal_projector.", "multi_modal_projector."},
                  {"patch_merge_mlp.", "patch_merge_mlp."}};
  if (has_prefix("model.")) {
    dialect.emplace_back("language_model.", "");
  } else {
    dialect.emplace_back("language_model.lm_head.", "lm_head.");
    dialect.emplace_back("language_model.model.", "");
  }
  return dialect;
}

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  map.family = "minimax_m3";
  map.layout = layout;
  map.dialect = dialect_of(catalog);
  for (const auto& [hf_prefix, native_prefix] : layer_prefixes) {
    for (const Row& row : layer_rows_automodel) map.rules.push_back(rule_of(row, hf_prefix, native_prefix));
  }
  for (const Row& row : model_rows_automodel) map.rules.push_back(rule_of(row, "", ""));
  for (const Row& row : catch_all_rows) map.rules.push_back(rule_of(row, "", ""));
  for (std::string_view pattern : ignored) map.ignored.emplace_back(pattern);
  return map;
}

bool has_names_of(const Catalog& catalog) {
  constexpr std::array<std::string_view, 4> marks = {".block_sparse_moe.", "patch_merge_mlp.",
                                                     ".self_attn.index_", "language_model.model.mtp.layers."};
  return std::any_of(catalog.tensors.begin(), catalog.tensors.end(), [&](const SourceTensor& tensor) {
    return std::any_of(marks.begin(), marks.end(),
                       [&](std::string_view mark) { return tensor.name.find(mark) != std::string::npos; });
  });
}

}  // namespace

Model minimax_m3() {
  return {"minimax_m3",
          {"minimax_m3_vl", "minimax_m3_vl_text", "minimax_m3", "minimax_m3_text"},
          {"automodel"},
          has_names_of,
          weight_map};
}

}  // namespace shardwright
