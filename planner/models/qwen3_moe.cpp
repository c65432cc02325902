/// The family of Qwen3-MoE, such as Qwen3-30B-A3B. Source of names and shapes: Qwen3MoeForCausalLM of
/// transformers 5.23 and the Qwen3-MoE adapter of nemo-automodel 0.7.0.

#include <array>

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

/// The same on both sides in all layouts. Some layers may have a dense MLP.
constexpr std::array<std::string_view, 13> layer = {"input_layernorm.weight",
                                                    "post_attention_layernorm.weight",
                                                    "self_attn.q_proj.weight",
                                                    "self_attn.k_proj.weight",
                                                    "self_attn.v_proj.weight",
                                                    "self_attn.o_proj.weight",
                                                    "self_attn.q_norm.weight",
                                                    "self_attn.k_norm.weight",
                                                    "mlp.gate.weight",
                                                    "mlp.gate_proj.weight",
                                                    "mlp.up_proj.weight",
                                                    "mlp.down_proj.weight",
                                                    "mlp.gate.e_score_correction_bias"};
constexpr std::array<std::string_view, 3> outside_layers = {"model.embed_tokens.weight", "model.norm.weight",
                                                            "lm_head.weight"};
constexpr std::array tied_head = {Row{"model.embed_tokens.weight", "lm_head.weight", "", /*only_read=*/true}};
constexpr std::array catch_all = {Row{"{*}", "{*}"}};

WeightMap weight_map(std::string_view layout, const Catalog&) {
  WeightMap map;
  const std::string_view experts = "model.layers.{layer}.mlp.experts.";
  add_rules(map.rules, split_experts(layout), experts, experts);
  add_rules(map.rules, layer, "model.layers.{layer}.", "model.layers.{layer}.");
  add_rules(map.rules, outside_layers, "", "");
  add_rules(map.rules, tied_head, "", "", /*known=*/true, /*alternative=*/1);
  add_rules(map.rules, catch_all, "", "", /*known=*/false);
  map.layers.emplace_back("model.layers.{layer}.{*}");
  map.after_layers.emplace_back("model.norm.{*}");
  map.after_layers.emplace_back("lm_head.{*}");
  return map;
}

}  // namespace

Model qwen3_moe() {
  return {"qwen3_moe", {"qwen3_moe"}, {"automodel", "transformers"}, {}, {}, {}, "", weight_map};
}

}  // namespace shardwright
