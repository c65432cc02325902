/// The family of Qwen3.5-MoE and Qwen3.6-MoE, with and without vision tower. Source of names and shapes:
/// transformers 5.23 (qwen3_5_moe) and the adapter of nemo-automodel 0.7.0. Released files have experts
/// stacked (BF16) or one by one (FP8); MTP's are either, whatever the decoder's are.

#include <array>
#include <string>

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::array renamed_by_automodel = {
    Row{"linear_attn.A_log", "linear_attn._fp32_params.A_log"},
    Row{"linear_attn.dt_bias", "linear_attn._fp32_params.dt_bias"},
    Row{"mlp.shared_expert.{*}", "mlp.shared_experts.{*}"},
};
constexpr std::array kept_by_transformers = {Row{"mlp.shared_expert.{*}", "mlp.shared_expert.{*}"}};
constexpr std::array<std::string_view, 6> layer = {"input_layernorm.{*}", "post_attention_layernorm.{*}",
                                                   "self_attn.{*}",       "linear_attn.{*}",
                                                   "mlp.gate.{*}",        "mlp.shared_expert_gate.{*}"};
constexpr std::array mtp = {
    Row{"mtp.fc.weight", "mtp.layers.0.eh_proj.weight"},
    Row{"mtp.pre_fc_norm_embedding.weight", "mtp.layers.0.enorm.weight"},
    Row{"mtp.pre_fc_norm_hidden.weight", "mtp.layers.0.hnorm.weight"},
    Row{"mtp.norm.weight", "mtp.layers.0.final_layernorm.weight"},
};
constexpr std::array<std::string_view, 2> outside_layers = {"model.visual.{*}", "lm_head.{*}"};
constexpr std::array<std::string_view, 2> around_layers = {"embed_tokens.{*}", "norm.{*}"};
constexpr std::array inner_head = {Row{"model.lm_head.{*}", "lm_head.{*}"}};

void add_layer(WeightMap& map, std::string_view layout, const std::string& prefix) {
  const std::string experts = prefix + "mlp.experts.";
  add_rules(map.rules, stacked_experts(layout), experts, experts);
  add_rules(map.rules, split_experts(layout), experts, experts, /*known=*/true, /*alternative=*/1);
  if (layout == "automodel") {
    add_rules(map.rules, renamed_by_automodel, prefix, prefix);
  } else {
    add_rules(map.rules, kept_by_transformers, prefix, prefix);
  }
  add_rules(map.rules, layer, prefix, prefix);
}

/// A text-only model has no "language_model", there as in its checkpoint.
std::string text_of(const Catalog& catalog) {
  const bool is_text_only =
      any_begins(catalog, "model.layers.") && !any_begins(catalog, "model.language_model.");
  return is_text_only ? "model." : "model.language_model.";
}

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const std::string text = text_of(catalog);
  add_layer(map, layout, text + "layers.{layer}.");
  if (layout == "automodel") {
    add_layer(map, layout, "mtp.layers.{layer}.");
    add_rules(map.rules, mtp, "", "");
  } else {
    map.without_place.emplace_back("mtp.{*}");
  }
  add_rules(map.rules, around_layers, text, text);
  add_rules(map.rules, outside_layers, "", "");
  add_rules(map.rules, inner_head, "", "", /*known=*/true, /*alternative=*/1);
  map.layers.emplace_back(text + "layers.{layer}.{*}");
  for (const std::string& after : {text + "norm.{*}", std::string("lm_head.{*}"), std::string("mtp.{*}")})
    map.after_layers.emplace_back(after);
  return map;
}

}  // namespace

Model qwen3_5_moe() {
  return {"qwen3_5_moe",
          {"qwen3_5_moe", "qwen3_5_moe_text"},
          {"automodel", "transformers"},
          {"model.language_model.layers.{layer}.mlp.shared_expert_gate.weight"},
          {"model.language_model.layers.{layer}.mlp.shared_expert_gate.weight"},
          {},
          "",
          weight_map};
}

}  // namespace shardwright
