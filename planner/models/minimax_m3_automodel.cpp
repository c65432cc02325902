/// The layout "automodel": what nemo_automodel.components.models.minimax_m3_vl trains. Experts are stacked as
/// [experts, in, out], the columns of the gate before those of the up projection.

#include <array>
#include <string>
#include <string_view>

#include "planner/models/minimax_m3_layouts.h"

namespace shardwright {
namespace {

constexpr std::string_view gate_columns = "o i -> {expert} i (0/2 o)";
constexpr std::string_view up_columns = "o i -> {expert} i (1/2 o)";
constexpr std::string_view transposed = "o i -> {expert} i o";

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
    Row{"self_attn.index_{*}", "self_attn.indexer.index_{*}"},
    Row{"mlp.gate_proj.weight", "mlp.gate_proj.weight"},
    Row{"mlp.up_proj.weight", "mlp.up_proj.weight"},
    Row{"mlp.down_proj.weight", "mlp.down_proj.weight"},
    Row{"block_sparse_moe.gate.weight", "mlp.gate.weight"},
    Row{"block_sparse_moe.e_score_correction_bias", "mlp.gate.e_score_correction_bias"},
    Row{"block_sparse_moe.experts.{expert}.w1.weight", "mlp.experts.gate_and_up_projs", gate_columns},
    Row{"block_sparse_moe.experts.{expert}.w3.weight", "mlp.experts.gate_and_up_projs", up_columns},
    Row{"block_sparse_moe.experts.{expert}.w2.weight", "mlp.experts.down_projs", transposed},
    Row{"block_sparse_moe.shared_experts.gate_proj.weight", "shared_experts.gate_proj.weight"},
    Row{"block_sparse_moe.shared_experts.up_proj.weight", "shared_experts.up_proj.weight"},
    Row{"block_sparse_moe.shared_experts.down_proj.weight", "shared_experts.down_proj.weight"},
};

/// An MTP module, beside the decoder layer that it holds.
constexpr std::array mtp_module = {
    Row{"enorm.weight", "enorm.weight"},
    Row{"hnorm.weight", "hnorm.weight"},
    Row{"eh_proj.weight", "eh_proj.weight"},
    Row{"final_layernorm.weight", "final_layernorm.weight"},
};

constexpr std::array outside_layers = {
    Row{"language_model.model.embed_tokens.weight", "model.embed_tokens.weight"},
    Row{"language_model.model.norm.weight", "model.norm.weight"},
    Row{"language_model.lm_head.weight", "lm_head.weight"},
    Row{"vision_tower.vision_model.{*}", "vision_tower.vision_model.{*}"},
    Row{"multi_modal_projector.{*}", "vision_tower.multi_modal_projector.{*}"},
    Row{"patch_merge_mlp.{*}", "vision_tower.patch_merge_mlp.{*}"},
};

/// What else a layer may have that is not named alike on both sides.
constexpr std::array else_in_layer = {
    Row{"block_sparse_moe.shared_experts.{*}", "shared_experts.{*}"},
};

/// All else in the text part keeps its name: finds the source of a tensor that the trainer has, but does not
/// make an unexpected tensor of a checkpoint a known one.
constexpr std::array catch_all = {
    Row{"language_model.model.{*}", "model.{*}"},
    Row{"language_model.lm_head.{*}", "lm_head.{*}"},
};

}  // namespace

void add_automodel_rules(WeightMap& map) {
  for (const std::string module : {"layers.{layer}.", "mtp.layers.{layer}.transformer_layer."}) {
    add_rules(map.rules, layer, "language_model.model." + module, "model." + module);
    add_rules(map.rules, else_in_layer, "language_model.model." + module, "model." + module, /*known=*/false);
  }
  add_rules(map.rules, mtp_module, "language_model.model.mtp.layers.{layer}.", "model.mtp.layers.{layer}.");
  add_rules(map.rules, outside_layers, "", "");
  add_rules(map.rules, catch_all, "", "", /*known=*/false);
}

}  // namespace shardwright
