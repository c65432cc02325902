/// The layout "transformers": the state dict of MiniMaxM3SparseForConditionalGeneration and
/// MiniMaxM3VLForCausalLM in transformers 5.23. Gate and up projections are joined, the rows of the gate
/// first; experts are stacked as [experts, out, in].

#include <array>
#include <string>
#include <string_view>

#include "planner/models/minimax_m3_layouts.h"

namespace shardwright {
namespace {

constexpr std::string_view gate_rows = "o i -> (0/2 o) i";
constexpr std::string_view up_rows = "o i -> (1/2 o) i";
constexpr std::string_view gate_rows_of_expert = "o i -> {expert} (0/2 o) i";
constexpr std::string_view up_rows_of_expert = "o i -> {expert} (1/2 o) i";
constexpr std::string_view one_of_experts = "o i -> {expert} o i";

/// A decoder layer.
constexpr std::array layer = {
    Row{"input_layernorm.weight", "input_layernorm.weight"},
    Row{"post_attention_layernorm.weight", "post_attention_layernorm.weight"},
    Row{"self_attn.q_proj.weight", "self_attn.q_proj.weight"},
    Row{"self_attn.k_proj.weight", "self_attn.k_proj.weight"},
    Row{"self_attn.v_proj.weight", "self_attn.v_proj.weight"},
    Row{"self_attn.o_proj.weight", "self_attn.o_proj.weight"},
    Row{"self_attn.q_norm.weight", "self_attn.q_norm.weight"},
    Row{"self_attn.k_norm.weight", "self_attn.k_norm.weight"},
    Row{"self_attn.index_{*}", "self_attn.indexer.{*}"},
    Row{"mlp.gate_proj.weight", "mlp.gate_up_proj.weight", gate_rows},
    Row{"mlp.up_proj.weight", "mlp.gate_up_proj.weight", up_rows},
    Row{"mlp.down_proj.weight", "mlp.down_proj.weight"},
    Row{"block_sparse_moe.gate.weight", "mlp.gate.weight"},
    Row{"block_sparse_moe.e_score_correction_bias", "mlp.gate.e_score_correction_bias"},
    Row{"block_sparse_moe.experts.{expert}.w1.weight", "mlp.experts.gate_up_proj", gate_rows_of_expert},
    Row{"block_sparse_moe.experts.{expert}.w3.weight", "mlp.experts.gate_up_proj", up_rows_of_expert},
    Row{"block_sparse_moe.experts.{expert}.w2.weight", "mlp.experts.down_proj", one_of_experts},
    Row{"block_sparse_moe.shared_experts.gate_proj.weight", "mlp.shared_experts.gate_up_proj.weight",
        gate_rows},
    Row{"block_sparse_moe.shared_experts.up_proj.weight", "mlp.shared_experts.gate_up_proj.weight", up_rows},
    Row{"block_sparse_moe.shared_experts.down_proj.weight", "mlp.shared_experts.down_proj.weight"},
};

constexpr std::array text_outside_layers = {
    Row{"embed_tokens.weight", "embed_tokens.weight"},
    Row{"norm.weight", "norm.weight"},
};

constexpr std::array outside_text = {
    Row{"language_model.lm_head.weight", "lm_head.weight"},
    Row{"vision_tower.vision_model.embeddings.patch_embedding.{*}", "model.vision_tower.embeddings.proj.{*}"},
    Row{"vision_tower.vision_model.pre_layrnorm.{*}", "model.vision_tower.pre_layrnorm.{*}"},
    Row{"vision_tower.vision_model.encoder.layers.{*}", "model.vision_tower.layers.{*}"},
    Row{"multi_modal_projector.linear_{*}", "model.multi_modal_projector.linear_{*}"},
    Row{"patch_merge_mlp.linear_{*}", "model.multi_modal_projector.merge_linear_{*}"},
};

/// All else in the text part keeps its name: see minimax_m3_automodel.cpp.
constexpr std::array catch_all = {Row{"{*}", "{*}"}};

/// transformers has no MTP. Listed name by name, so that a tensor that no MTP module has is still an unknown
/// one.
constexpr std::array mtp_module = {"enorm.weight", "hnorm.weight", "eh_proj.weight",
                                   "final_layernorm.weight"};

}  // namespace

void add_transformers_rules(WeightMap& map) {
  // A text model of its own has no "language_model", there as in its checkpoint.
  const std::string text = map.dialect.empty() ? "model.language_model." : "model.";
  add_rules(map.rules, layer, "language_model.model.layers.{layer}.", text + "layers.{layer}.");
  add_rules(map.rules, text_outside_layers, "language_model.model.", text);
  add_rules(map.rules, outside_text, "", "");
  add_rules(map.rules, catch_all, "language_model.model.", text, /*known=*/false);
  add_rules(map.rules, catch_all, "language_model.lm_head.", "lm_head.", /*known=*/false);

  const std::string mtp = "language_model.model.mtp.layers.{layer}.";
  for (const std::string name : mtp_module) map.without_place.emplace_back(mtp + name);
  for (const Row& row : layer)
    map.without_place.emplace_back(mtp + "transformer_layer." + std::string(row.hf));
}

}  // namespace shardwright
