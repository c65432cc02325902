/// Qwen3-VL, dense and with experts. Source of names and shapes: the models qwen3_vl and qwen3_vl_moe of
/// transformers 5.23 and the adapter of nemo-automodel 0.7.0. Released experts are stacked as [experts,
/// hidden, 2 intermediate], those that transformers 5.23 saves as [experts, 2 intermediate, hidden]: the same
/// names.

#include <array>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array<std::string_view, 1> vision = {"model.visual.{*}"};
constexpr std::array released_automodel = {Row{"gate_up_proj", "gate_and_up_projs"},
                                           Row{"down_proj", "down_projs"}};
constexpr std::array released_transformers = {Row{"gate_up_proj", "gate_up_proj", "e i o -> e o i"},
                                              Row{"down_proj", "down_proj", "e i o -> e o i"}};

/// Whether experts are as transformers saves them: "down_proj" is [experts, hidden, intermediate] and not
/// [experts, intermediate, hidden]. No two sizes fit both: the other side of "gate_up_proj" is twice as long.
bool is_as_saved(const Catalog& catalog) {
  for (const SourceTensor& down : catalog.tensors) {
    const std::string_view name = down.name;
    constexpr std::string_view ending = ".mlp.experts.down_proj";
    if (!name.ends_with(ending)) continue;
    const std::string stack(name.substr(0, name.size() - ending.size()));
    const std::span<const SourceTensor> joined = catalog.find(stack + ".mlp.experts.gate_up_proj");
    const std::span<const SourceTensor> single = catalog.find(down.name);
    if (joined.empty() || single.empty()) continue;
    const Shape gate_up = Catalog::global_shape(joined);
    const Shape of_down = Catalog::global_shape(single);
    if (gate_up.size() != 3 || of_down.size() != 3) continue;
    return gate_up[2] == of_down[1] && gate_up[1] == 2 * of_down[2];
  }
  return false;
}

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  TextModel text = text_model(layout);
  text.hf = text.native = "model.language_model.";
  if (is_as_saved(catalog)) {
    add_experts(map, text, stacked_experts(layout));
  } else if (layout == "automodel") {
    add_experts(map, text, released_automodel);
  } else {
    add_experts(map, text, released_transformers);
  }
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  add_rules(map.rules, vision, "", "");
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view dense_config = R"({
  "architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl",
  "text_config": {"model_type": "qwen3_vl_text"},
  "vision_config": {"model_type": "qwen3_vl_vision", "depth": 2, "hidden_size": 12, "intermediate_size": 20,
  "num_heads": 2, "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
  "out_hidden_size": 48, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}})";
constexpr std::string_view mixture_config = R"({
  "architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe",
  "text_config": {"model_type": "qwen3_vl_moe_text", "num_experts": 4, "num_experts_per_tok": 2,
  "moe_intermediate_size": 40},
  "vision_config": {"model_type": "qwen3_vl_moe_vision", "depth": 2, "hidden_size": 12, "intermediate_size": 20,
  "num_heads": 2, "in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
  "out_hidden_size": 48, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}})";

constexpr SampleRow mixture[] = {
    {"gate.weight", "experts hidden"},
    {"experts.gate_up_proj", "experts hidden 2*expert_inter"},
    {"experts.down_proj", "experts expert_inter hidden"},
};

void add_tensors(SampleTensors& tensors, std::span<const SampleRow> mlp) {
  const std::string model = "model.language_model.";
  add_sample_ends(tensors, model);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix(model, layer);
    add_sample_layer(tensors, prefix, {sample_attention(), sample_head_norms()});
    tensors.add(prefix + "mlp.", mlp);
  }
  add_sample_vision(tensors);
}

void add_dense(SampleTensors& tensors) { add_tensors(tensors, sample_mlp()); }
void add_mixture(SampleTensors& tensors) { add_tensors(tensors, mixture); }

std::vector<Sample> dense_samples() { return bf16_and_block_fp8(dense_config, add_dense); }

std::vector<Sample> mixture_samples() {
  return {{.form = "bf16", .config = std::string(mixture_config), .add_tensors = add_mixture}};
}

}  // namespace

std::vector<Model> qwen3_vl() {
  return {
      {.family = "qwen3_vl",
       .model_types = {"qwen3_vl"},
       .layouts = {"automodel", "transformers"},
       .trained_as_transformers = true,
       .text_names = {"model.language_model."},
       .weight_map = weight_map,
       .samples = dense_samples},
      {.family = "qwen3_vl_moe",
       .model_types = {"qwen3_vl_moe"},
       .layouts = {"automodel", "transformers"},
       .text_names = {"model.language_model."},
       .weight_map = weight_map,
       .samples = mixture_samples},
  };
}

}  // namespace shardwright
