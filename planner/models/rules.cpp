#include "planner/models/rules.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "planner/models/config.h"

namespace shardwright {
namespace {

constexpr std::string_view gate_columns = "o i -> {expert} i (0/2 o)";
constexpr std::string_view up_columns = "o i -> {expert} i (1/2 o)";
constexpr std::string_view transposed = "o i -> {expert} i o";
constexpr std::string_view gate_rows = "o i -> {expert} (0/2 o) i";
constexpr std::string_view up_rows = "o i -> {expert} (1/2 o) i";
constexpr std::string_view one_of_experts = "o i -> {expert} o i";

constexpr std::array split_automodel = {
    Row{"{expert}.gate_proj.weight", "gate_and_up_projs", gate_columns},
    Row{"{expert}.up_proj.weight", "gate_and_up_projs", up_columns},
    Row{"{expert}.down_proj.weight", "down_projs", transposed},
};
constexpr std::array split_transformers = {
    Row{"{expert}.gate_proj.weight", "gate_up_proj", gate_rows},
    Row{"{expert}.up_proj.weight", "gate_up_proj", up_rows},
    Row{"{expert}.down_proj.weight", "down_proj", one_of_experts},
};
constexpr std::array split_torchtitan = {
    Row{"{expert}.gate_proj.weight", "w1_EFD", one_of_experts},
    Row{"{expert}.up_proj.weight", "w3_EFD", one_of_experts},
    Row{"{expert}.down_proj.weight", "w2_EDF", one_of_experts},
};

constexpr std::array numbered_automodel = {
    Row{"{expert}.w1.weight", "gate_and_up_projs", gate_columns},
    Row{"{expert}.w3.weight", "gate_and_up_projs", up_columns},
    Row{"{expert}.w2.weight", "down_projs", transposed},
};
constexpr std::array numbered_transformers = {
    Row{"{expert}.w1.weight", "gate_up_proj", gate_rows},
    Row{"{expert}.w3.weight", "gate_up_proj", up_rows},
    Row{"{expert}.w2.weight", "down_proj", one_of_experts},
};

constexpr std::array stacked_automodel = {
    Row{"gate_up_proj", "gate_and_up_projs", "e o i -> e i o"},
    Row{"down_proj", "down_projs", "e o i -> e i o"},
};
constexpr std::array stacked_transformers = {
    Row{"gate_up_proj", "gate_up_proj"},
    Row{"down_proj", "down_proj"},
};
constexpr std::array stacked_torchtitan = {
    Row{"gate_up_proj", "w1_EFD", "e (0/2 o) i -> e o i"},
    Row{"gate_up_proj", "w3_EFD", "e (1/2 o) i -> e o i"},
    Row{"down_proj", "w2_EDF"},
};

constexpr Row same(std::string_view name) { return {name, name}; }

constexpr std::array usual = {
    same("input_layernorm.{*}"), same("post_attention_layernorm.{*}"),
    same("self_attn.{*}"),       same("mlp.gate_proj.{*}"),
    same("mlp.up_proj.{*}"),     same("mlp.down_proj.{*}"),
};
constexpr std::array mixture = {same("mlp.gate.{*}"), same("mlp.shared_experts.{*}")};
constexpr std::array usual_torchtitan = {
    Row{"input_layernorm.weight", "attention_norm.weight"},
    Row{"post_attention_layernorm.weight", "ffn_norm.weight"},
    Row{"mlp.gate_proj.weight", "feed_forward.w1.weight"},
    Row{"mlp.up_proj.weight", "feed_forward.w3.weight"},
    Row{"mlp.down_proj.weight", "feed_forward.w2.weight"},
};
constexpr std::array mixture_of_torchtitan = {
    Row{"mlp.gate.weight", "moe.router.gate.weight"},
    Row{"mlp.gate.e_score_correction_bias", "moe.expert_bias_E"},
    Row{"mlp.shared_experts.gate_proj.weight", "moe.shared_experts.w1.weight"},
    Row{"mlp.shared_experts.up_proj.weight", "moe.shared_experts.w3.weight"},
    Row{"mlp.shared_experts.down_proj.weight", "moe.shared_experts.w2.weight"},
};
constexpr std::array attention_of_torchtitan = {
    Row{"self_attn.q_proj.{*}", "attention.qkv_linear.wq.{*}"},
    Row{"self_attn.k_proj.{*}", "attention.qkv_linear.wk.{*}"},
    Row{"self_attn.v_proj.{*}", "attention.qkv_linear.wv.{*}"},
    Row{"self_attn.o_proj.{*}", "attention.wo.{*}"},
    Row{"self_attn.q_norm.weight", "attention.q_norm.weight"},
    Row{"self_attn.k_norm.weight", "attention.k_norm.weight"},
    Row{"self_attn.sinks", "attention.sinks"},
};

constexpr std::array linear_automodel = {
    Row{"linear_attn.A_log", "linear_attn._fp32_params.A_log"},
    Row{"linear_attn.dt_bias", "linear_attn._fp32_params.dt_bias"},
    Row{"mlp.shared_expert.{*}", "mlp.shared_experts.{*}"},
    same("linear_attn.{*}"),
    same("mlp.gate.{*}"),
    same("mlp.shared_expert_gate.{*}"),
};
constexpr std::array linear_transformers = {
    same("mlp.shared_expert.{*}"),
    same("linear_attn.{*}"),
    same("mlp.gate.{*}"),
    same("mlp.shared_expert_gate.{*}"),
};

constexpr std::array latent_attention_of_torchtitan = {
    Row{"self_attn.kv_a_proj_with_mqa.weight", "attention.wkv_a.weight"},
    Row{"self_attn.kv_a_layernorm.weight", "attention.kv_norm.weight"},
    Row{"self_attn.kv_b_proj.weight", "attention.wkv_b.weight"},
    Row{"self_attn.o_proj.weight", "attention.wo.weight"},
    Row{"self_attn.q_a_proj.weight", "attention.wq_a.weight"},
    Row{"self_attn.q_a_layernorm.weight", "attention.q_norm.weight"},
    Row{"self_attn.q_b_proj.weight", "attention.wq_b.weight"},
    Row{"self_attn.q_proj.weight", "attention.wq.weight"},
};

constexpr std::array last_norm = {same("norm.{*}")};
constexpr std::array catch_all = {same("{*}")};

constexpr std::array<std::string_view, 5> mtp = {"enorm.{*}", "hnorm.{*}", "eh_proj.{*}", "shared_head.{*}",
                                                 "embed_tokens.{*}"};

std::span<const Row> of_layout(std::string_view layout, std::span<const Row> automodel,
                               std::span<const Row> transformers, std::span<const Row> torchtitan) {
  if (layout == "automodel") return automodel;
  return layout == "torchtitan" ? torchtitan : transformers;
}

}  // namespace

bool any_begins(const Catalog& catalog, std::string_view prefix) {
  return std::any_of(catalog.tensors.begin(), catalog.tensors.end(),
                     [&](const SourceTensor& tensor) { return tensor.name.starts_with(prefix); });
}

void add_rules(std::vector<Rule>& rules, std::span<const Row> rows, std::string_view hf_prefix,
               std::string_view native_prefix, bool known, int alternative) {
  for (const Row& row : rows) {
    Rule& rule = rules.emplace_back(Rule{NamePattern(std::string(hf_prefix) + std::string(row.hf)),
                                         NamePattern(std::string(native_prefix) + std::string(row.native))});
    if (!row.axes.empty()) rule.axes = AxisExpression(row.axes);
    rule.known = known;
    rule.alternative = alternative;
    rule.only_read = row.only_read;
    if (!row.multiplier.empty())
      rule.multiplier = NamePattern(std::string(hf_prefix) + std::string(row.multiplier));
  }
}

void add_rules(std::vector<Rule>& rules, std::span<const std::string_view> names, std::string_view hf_prefix,
               std::string_view native_prefix, bool known) {
  for (const std::string_view name : names) {
    const Row row{name, name};
    add_rules(rules, std::span(&row, 1), hf_prefix, native_prefix, known);
  }
}

TextModel text_model(std::string_view layout) {
  TextModel text;
  text.layout = layout;
  if (layout == "torchtitan") text.native.clear();
  return text;
}

std::string vision_models_text(const Catalog& catalog) {
  const bool is_text_only =
      any_begins(catalog, "model.layers.") && !any_begins(catalog, "model.language_model.");
  return is_text_only ? "model." : "model.language_model.";
}

std::string vision_models_native_text(const Catalog& catalog) {
  return model_type_of(catalog).ends_with("_text") ? "model." : vision_models_text(catalog);
}

void add_layers(WeightMap& map, const TextModel& text, std::span<const Row> rows, int alternative) {
  add_rules(map.rules, rows, text.hf_layer(), text.native_layer(), /*known=*/true, alternative);
}

void add_layers(WeightMap& map, const TextModel& text, std::span<const std::string_view> names) {
  add_rules(map.rules, names, text.hf_layer(), text.native_layer());
}

std::span<const Row> usual_layer(std::string_view layout) {
  return of_layout(layout, usual, usual, usual_torchtitan);
}

std::span<const Row> usual_mixture(std::string_view layout) {
  return of_layout(layout, mixture, mixture, mixture_of_torchtitan);
}

std::span<const Row> linear_attention_layer(std::string_view layout) {
  return of_layout(layout, linear_automodel, linear_transformers, {});
}

std::span<const Row> torchtitan_attention() { return attention_of_torchtitan; }
std::span<const Row> torchtitan_latent_attention() { return latent_attention_of_torchtitan; }

void add_outside_layers(WeightMap& map, const TextModel& text, const Catalog& catalog) {
  const std::string embedding = text.hf + text.hf_embedding;
  const std::string native_embedding =
      text.native + (text.layout == "torchtitan" ? "tok_embeddings.weight" : "embed_tokens.weight");
  add_rules(map.rules, last_norm, text.hf, text.native);
  const Row apart[] = {{embedding, native_embedding}, {text.hf_head, text.native_head}};
  add_rules(map.rules, apart, "", "");
  if (may_be_tied(catalog)) {
    const Row tied{embedding, text.native_head, {}, /*only_read=*/true};
    add_rules(map.rules, std::span(&tied, 1), "", "", /*known=*/true, /*alternative=*/2);
  }
  if (text.layout != "torchtitan") add_rules(map.rules, catch_all, "", "", /*known=*/false);
  map.layers.emplace_back(text.hf_layer() + "{*}");
  for (const std::string& after : {text.hf + "norm.{*}", text.hf_head, std::string("mtp.{*}")})
    map.after_layers.emplace_back(after);
}

void add_experts(WeightMap& map, const TextModel& text, std::span<const Row> rows, std::string_view hf_module,
                 int alternative) {
  const std::string_view native_module =
      text.layout == "torchtitan" ? "moe.routed_experts.inner_experts." : "mlp.experts.";
  add_rules(map.rules, rows, text.hf_layer() + std::string(hf_module),
            text.native_layer() + std::string(native_module), /*known=*/true, alternative);
}

std::span<const Row> split_experts(std::string_view layout) {
  return of_layout(layout, split_automodel, split_transformers, split_torchtitan);
}

std::span<const Row> numbered_experts(std::string_view layout) {
  return of_layout(layout, numbered_automodel, numbered_transformers, {});
}

std::span<const Row> stacked_experts(std::string_view layout) {
  return of_layout(layout, stacked_automodel, stacked_transformers, stacked_torchtitan);
}

std::span<const std::string_view> mtp_names() { return mtp; }

void leave_out_mtp_layers(WeightMap& map, const TextModel& text, const Catalog& catalog) {
  const std::optional<std::int64_t> layers = number_in_config(catalog, "num_hidden_layers");
  if (layers) map.without_place.emplace_back(text.hf + "layers.{layer+" + std::to_string(*layers) + "}.{*}");
}

}  // namespace shardwright
