/// The family of MiniMax M3, text and VL: what holds for every layout. Source of names and shapes: the seed
/// documentation of nemo_automodel.components.models.minimax_m3_vl and the released model's key lists
/// (tests/data).

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "planner/error.h"
#include "planner/models/known_models.h"
#include "planner/models/minimax_m3_layouts.h"
#include "planner/models/minimax_m3_presets.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"
#include "planner/names/companions.h"

namespace shardwright {
namespace {

/// The documented rule of names: the weights of a decoder layer that are block-scaled where no checkpoint
/// says so. MTP's eh_proj is not among them, although the released files store it as FP8.
constexpr std::array<std::string_view, 13> quantized = {
    ".self_attn.q_proj.weight",
    ".self_attn.k_proj.weight",
    ".self_attn.v_proj.weight",
    ".self_attn.o_proj.weight",
    ".mlp.gate_proj.weight",
    ".mlp.up_proj.weight",
    ".mlp.down_proj.weight",
    ".block_sparse_moe.experts.{expert}.w1.weight",
    ".block_sparse_moe.experts.{expert}.w2.weight",
    ".block_sparse_moe.experts.{expert}.w3.weight",
    ".block_sparse_moe.shared_experts.gate_proj.weight",
    ".block_sparse_moe.shared_experts.up_proj.weight",
    ".block_sparse_moe.shared_experts.down_proj.weight",
};

/// MTP keys outside the text part belong to no layout.
constexpr std::array<std::string_view, 3> ignored = {"mtp.{*}", "model.mtp.{*}", "vision_tower.mtp.{*}"};

/// Where the tensors stand in a pipeline; all others come before the layers.
constexpr std::string_view layers = "language_model.model.layers.{layer}.{*}";
constexpr std::array<std::string_view, 3> after_layers = {
    "language_model.model.norm.{*}", "language_model.model.mtp.{*}", "language_model.lm_head.{*}"};

bool is_quantized(const NamePattern& hf) {
  return std::any_of(quantized.begin(), quantized.end(),
                     [&](std::string_view ending) { return hf.text().ends_with(ending); });
}

/// A text-only checkpoint has no "language_model." and may lack "model." too.
Dialect dialect_of(const Catalog& catalog) {
  if (catalog.tensors.empty() || any_begins(catalog, "language_model.")) return {};
  Dialect dialect{{"vision_tower.", "vision_tower."},
                  {"multi_modal_projector.", "multi_modal_projector."},
                  {"patch_merge_mlp.", "patch_merge_mlp."}};
  if (any_begins(catalog, "model.")) {
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
  if (layout == "automodel") add_automodel_rules(map);
  if (layout == "transformers") add_transformers_rules(map);
  for (Rule& rule : map.rules) rule.quantized = is_quantized(rule.hf);
  for (std::string_view pattern : ignored) map.ignored.emplace_back(pattern);
  map.layers.emplace_back(layers);
  for (std::string_view pattern : after_layers) map.after_layers.emplace_back(pattern);
  return map;
}

/// Presets' tensors, with sizes as the config has them.
void add_tensors(SampleTensors& tensors) {
  MiniMaxM3Preset sizes = *find_minimax_m3_preset("tiny");
  constexpr std::string_view vision = "vision_config";
  sizes.hidden = tensors.number("hidden_size");
  sizes.expert_intermediate = tensors.number("intermediate_size");
  sizes.dense_intermediate = tensors.number("dense_intermediate_size");
  sizes.experts = tensors.number("num_local_experts");
  sizes.layers = tensors.number("num_hidden_layers");
  sizes.heads = tensors.number("num_attention_heads");
  sizes.key_value_heads = tensors.number("num_key_value_heads");
  sizes.head_dim = tensors.number("head_dim");
  sizes.vocabulary = tensors.number("vocab_size");
  sizes.mtp_modules = tensors.number("num_mtp_modules");
  sizes.vision_layers = tensors.number("num_hidden_layers", vision);
  sizes.vision_hidden = tensors.number("hidden_size", vision);
  constexpr std::int64_t most = 1 << 20;  // of modules, all of which are listed below
  const std::int64_t layers = sizes.layers + sizes.mtp_modules + sizes.vision_layers;
  if (layers > most || sizes.experts > most || layers * (sizes.experts + 1) > most) {
    throw Error(ErrorKind::argument, "config: expected at most " + std::to_string(most) +
                                         " experts in all layers; give fewer of either");
  }
  sizes.dense_layers = 0;
  while (tensors.kind("mlp_layer_types", sizes.dense_layers) == "dense") ++sizes.dense_layers;
  for (NamedShape& tensor : minimax_m3_checkpoint(sizes)) {
    const bool is_expert = tensor.name.find(".experts.") != std::string::npos;
    if (is_float8(tensor.dtype) && is_expert) {
      tensors.add_expert(tensor.name, std::move(tensor.shape));
    } else if (is_float8(tensor.dtype)) {
      tensors.add_scaled(tensor.name, std::move(tensor.shape));
    } else if (!is_scale_name(tensor.name)) {
      tensors.add(tensor.name, tensor.dtype, std::move(tensor.shape));
    }
  }
}

std::vector<Sample> samples() {
  const std::string config = minimax_m3_config(*find_minimax_m3_preset("tiny"));
  return {{.form = "mxfp8",
           .config = config,
           .encoding = "mxfp8",

           .add_tensors = add_tensors},
          {.form = "nvfp4",
           .config = config,
           .encoding = "mxfp8",
           .expert_encoding = "nvfp4_modelopt",
           .add_tensors = add_tensors},
          {.form = "bf16", .config = config, .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> minimax_m3() {
  return {
      {.family = "minimax_m3",
       .model_types = {"minimax_m3_vl", "minimax_m3_vl_text", "minimax_m3", "minimax_m3_text"},
       .layouts = {"automodel", "transformers"},
       .hf_marks = {"patch_merge_mlp.", ".self_attn.index_", "language_model.model.mtp.layers.",
                    "language_model.model.layers.{layer}.block_sparse_moe.{*}"},
       .native_marks = {"model.layers.{layer}.self_attn.indexer.index_{*}",
                        "model.layers.{layer}.shared_experts.{*}",
                        "model.mtp.layers.{layer}.transformer_layer.{*}", "vision_tower.patch_merge_mlp.{*}",
                        "model.language_model.layers.{layer}.self_attn.indexer.{*}",
                        "model.language_model.layers.{layer}.mlp.shared_experts.gate_up_proj.weight",
                        "model.layers.{layer}.mlp.shared_experts.gate_up_proj.weight",
                        "model.multi_modal_projector.merge_linear_{*}"},
       .text_prefix = "language_model.",
       .text_names = {"language_model.model.", "model.", ""},
       .keeps_f32 = false,  // all floats become BF16, as documented
       .weight_map = weight_map,
       .samples = samples}};
}

}  // namespace shardwright
