/// Nemotron 3 and other Nemotron-H. Source of names and shapes: NemotronHForCausalLM of transformers 5.23,
/// which has no MTP, and the adapter nemotron_v3 of nemo-automodel 0.7.0. Experts have no gate.

#include <array>
#include <string>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array automodel = {
    Row{"mixer.experts.{expert}.up_proj.weight", "mixer.experts.gate_and_up_projs", "o i -> {expert} i o"},
    Row{"mixer.experts.{expert}.down_proj.weight", "mixer.experts.down_projs", "o i -> {expert} i o"},
    Row{"mixer.A_log", "mixer._fp32_params.A_log"},
    Row{"mixer.dt_bias", "mixer._fp32_params.dt_bias"},
    Row{"mixer.D", "mixer._fp32_params.D"},
};
constexpr std::array transformers = {
    Row{"mixer.experts.{expert}.up_proj.weight", "mixer.experts.up_proj", "o i -> {expert} o i"},
    Row{"mixer.experts.{expert}.down_proj.weight", "mixer.experts.down_proj", "o i -> {expert} o i"},
};
constexpr std::array<std::string_view, 2> layer = {"norm.{*}", "mixer.{*}"};
constexpr std::array<std::string_view, 4> mtp_layer = {"enorm.{*}", "hnorm.{*}", "eh_proj.{*}",
                                                       "final_layernorm.{*}"};

constexpr std::array around_automodel = {
    Row{"backbone.embeddings.weight", "model.embed_tokens.weight"},
    Row{"backbone.norm_f.weight", "model.norm.weight"},
    Row{"lm_head.weight", "lm_head.weight"},
};
/// What NVIDIA's own code has stored, which nemo-automodel reads, too.
constexpr std::array singular = {Row{"backbone.embedding.weight", "model.embed_tokens.weight"}};
constexpr std::array around_transformers = {
    Row{"backbone.embeddings.weight", "model.embeddings.weight"},
    Row{"backbone.norm_f.weight", "model.norm_f.weight"},
    Row{"lm_head.weight", "lm_head.weight"},
};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const bool is_automodel = layout == "automodel";
  // transformers may have stored the model under the names that its own modules have.
  if (any_begins(catalog, "model.layers.") && !any_begins(catalog, "backbone."))
    map.dialect = {{"backbone.", "model."}};
  const auto add_layer = [&](const std::string& hf, const std::string& native) {
    add_rules(map.rules, is_automodel ? std::span<const Row>(automodel) : transformers, hf, native);
    add_rules(map.rules, layer, hf, native);
  };
  add_layer("backbone.layers.{layer}.", "model.layers.{layer}.");
  if (is_automodel) {
    add_layer("mtp.layers.{layer}.", "mtp.layers.{layer}.");
    add_rules(map.rules, mtp_layer, "mtp.layers.{layer}.", "mtp.layers.{layer}.");
  } else {
    map.without_place.emplace_back("mtp.{*}");
  }
  add_rules(map.rules, is_automodel ? std::span<const Row>(around_automodel) : around_transformers, "", "");
  if (is_automodel) add_rules(map.rules, singular, "", "", /*known=*/true, /*alternative=*/1);
  map.layers.emplace_back("backbone.layers.{layer}.{*}");
  for (const char* after : {"backbone.norm_f.{*}", "lm_head.{*}", "mtp.{*}"})
    map.after_layers.emplace_back(after);
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", "num_hidden_layers": 4,
  "layers_block_type": ["mamba", "moe", "attention", "moe"], "mamba_num_heads": 4, "mamba_head_dim": 6,
  "ssm_state_size": 8, "n_groups": 2, "conv_kernel": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
  "moe_intermediate_size": 40, "moe_shared_expert_intermediate_size": 28, "n_group": 1, "topk_group": 1})";

constexpr SampleRow mamba[] = {
    {"A_log", "mamba_num_heads"},
    {"D", "mamba_num_heads"},
    {"dt_bias", "mamba_num_heads"},
    {"conv1d.weight", "mamba_num_heads*mamba_head_dim+2*n_groups*ssm_state_size 1 conv_kernel"},
    {"conv1d.bias", "mamba_num_heads*mamba_head_dim+2*n_groups*ssm_state_size"},
    {"in_proj.weight", "2*mamba_num_heads*mamba_head_dim+2*n_groups*ssm_state_size+mamba_num_heads hidden",
     StoredAs::scaled},
    {"norm.weight", "mamba_num_heads*mamba_head_dim"},
    {"out_proj.weight", "hidden mamba_num_heads*mamba_head_dim", StoredAs::scaled},
};
constexpr SampleRow sample_router[] = {{"gate.weight", "experts hidden"},
                                       {"gate.e_score_correction_bias", "experts", StoredAs::f32}};
constexpr SampleRow ungated[] = {{"up_proj.weight", "expert_inter hidden", StoredAs::scaled},
                                 {"down_proj.weight", "hidden expert_inter", StoredAs::scaled}};
constexpr SampleRow ungated_shared[] = {{"up_proj.weight", "shared_inter hidden", StoredAs::scaled},
                                        {"down_proj.weight", "hidden shared_inter", StoredAs::scaled}};
constexpr SampleRow norm[] = {{"norm.weight", "hidden"}};
constexpr SampleRow outside[] = {{"backbone.embeddings.weight", "vocab hidden"},
                                 {"backbone.norm_f.weight", "hidden"},
                                 {"lm_head.weight", "vocab hidden"}};
constexpr SampleRow before_mtp[] = {
    {"enorm.weight", "hidden"}, {"hnorm.weight", "hidden"}, {"eh_proj.weight", "hidden 2*hidden"}};
constexpr SampleRow after_mtp[] = {{"final_layernorm.weight", "hidden"}};

void add_layer(SampleTensors& tensors, const std::string& prefix, std::string_view kind) {
  const std::string mixer = prefix + "mixer.";
  tensors.add(prefix, norm);
  if (kind == "mamba") tensors.add(mixer, mamba);
  if (kind == "attention") tensors.add(mixer, sample_attention());
  if (kind != "moe") return;
  tensors.add(mixer, sample_router);
  tensors.add(mixer + "experts.{expert}.", ungated);
  tensors.add(mixer + "shared_experts.", ungated_shared);
}

void add_tensors(SampleTensors& tensors) {
  tensors.add("", outside);
  for (std::int64_t k = 0; k < tensors.number("num_hidden_layers"); ++k)
    add_layer(tensors, layer_prefix("backbone.", k), tensors.kind("layers_block_type", k));
  tensors.add("mtp.layers.0.", before_mtp);
  add_layer(tensors, "mtp.layers.0.", "attention");
  add_layer(tensors, "mtp.layers.1.", "moe");
  tensors.add("mtp.layers.1.", after_mtp);
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> nemotron_h() {
  return {{.family = "nemotron_h",
           .model_types = {"nemotron_h"},
           .layouts = {"automodel", "transformers"},
           .hf_marks = {"backbone.layers.{layer}.mixer.experts.{*}"},
           .native_marks = {"model.layers.{layer}.mixer.experts.{*}"},
           .text_names = {"backbone.", "model."},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
