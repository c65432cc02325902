/// gpt-oss, with experts in BF16, and in MXFP4 as released, where each matrix is the other's transpose.
/// Source of names and shapes: GptOssForCausalLM of transformers 5.23 with its convert_moe_packed_tensors,
/// and the adapters of nemo-automodel 0.7.0 and torchtitan 0.3.0. Rows of gates and ups take turns, in all of
/// them.

#include <algorithm>
#include <array>
#include <vector>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array automodel = {
    Row{"mlp.router.{*}", "mlp.gate.{*}"},
    Row{"mlp.experts.gate_up_proj", "mlp.experts.gate_and_up_projs"},
    Row{"mlp.experts.down_proj", "mlp.experts.down_projs"},
    Row{"mlp.experts.gate_up_proj_bias", "mlp.experts.gate_up_proj_bias"},
    Row{"mlp.experts.down_proj_bias", "mlp.experts.down_proj_bias"},
};
constexpr std::array<std::string_view, 1> sinks = {"self_attn.sinks"};
/// In nemo-automodel with the attention of Transformer Engine; known by their name above.
constexpr std::array sinks_of_engine = {Row{"self_attn.sinks", "self_attn.attn_module.softmax_offset"}};
constexpr std::array<std::string_view, 2> transformers = {"mlp.router.{*}", "mlp.experts.{*}"};
constexpr std::array torchtitan = {
    Row{"mlp.router.{*}", "moe.router.gate.{*}"},
    Row{"mlp.experts.gate_up_proj", "moe.routed_experts.inner_experts.mlp1_weight", "e i o -> e o i"},
    Row{"mlp.experts.gate_up_proj_bias", "moe.routed_experts.inner_experts.mlp1_bias"},
    Row{"mlp.experts.down_proj", "moe.routed_experts.inner_experts.mlp2_weight", "e i o -> e o i"},
    Row{"mlp.experts.down_proj_bias", "moe.routed_experts.inner_experts.mlp2_bias"},
};

/// Packed experts: [experts, out, in], where a trainer has [experts, in, out].
constexpr std::array packed_automodel = {
    Row{"mlp.experts.gate_up_proj", "mlp.experts.gate_and_up_projs", "e o i -> e i o"},
    Row{"mlp.experts.down_proj", "mlp.experts.down_projs", "e o i -> e i o"},
};
constexpr std::array packed_transformers = {
    Row{"mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", "e o i -> e i o"},
    Row{"mlp.experts.down_proj", "mlp.experts.down_proj", "e o i -> e i o"},
};
constexpr std::array packed_torchtitan = {
    Row{"mlp.experts.gate_up_proj", "moe.routed_experts.inner_experts.mlp1_weight"},
    Row{"mlp.experts.down_proj", "moe.routed_experts.inner_experts.mlp2_weight"},
};

bool has_packed_experts(const Catalog& catalog) {
  return std::any_of(catalog.tensors.begin(), catalog.tensors.end(), [](const SourceTensor& tensor) {
    return tensor.dtype == DType::F4 && tensor.name.ends_with(".mlp.experts.gate_up_proj");
  });
}

std::span<const Row> packed_experts(std::string_view layout) {
  if (layout == "torchtitan") return packed_torchtitan;
  return layout == "automodel" ? std::span<const Row>(packed_automodel) : packed_transformers;
}

/// All rows of the layout but those of packed experts' weights.
std::vector<Row> without_experts(std::span<const Row> rows) {
  std::vector<Row> rest;
  for (const Row& row : rows) {
    if (row.hf != "mlp.experts.gate_up_proj" && row.hf != "mlp.experts.down_proj") rest.push_back(row);
  }
  return rest;
}

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  const bool is_packed = has_packed_experts(catalog);
  const auto rows_of = [&](std::span<const Row> rows) {
    return is_packed ? without_experts(rows) : std::vector<Row>(rows.begin(), rows.end());
  };
  if (is_packed) add_layers(map, text, packed_experts(layout));
  if (layout == "automodel") {
    add_layers(map, text, rows_of(automodel));
    add_layers(map, text, sinks);
    add_rules(map.rules, sinks_of_engine, text.hf_layer(), text.native_layer(), /*known=*/false);
  }
  if (layout == "transformers") add_layers(map, text, transformers);
  if (layout == "torchtitan") {
    add_layers(map, text, rows_of(torchtitan));
    add_layers(map, text, torchtitan_attention());
  }
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "num_local_experts": 4,
  "num_experts_per_tok": 2, "intermediate_size": 40, "layer_types": ["sliding_attention", "full_attention"]})";

constexpr SampleRow more_of_attention[] = {{"o_proj.bias", "hidden"}, {"sinks", "heads"}};
constexpr SampleRow sample_mixture[] = {
    {"router.weight", "experts hidden"},
    {"router.bias", "experts"},
    {"experts.gate_up_proj", "experts hidden 2*expert_inter"},
    {"experts.gate_up_proj_bias", "experts 2*expert_inter"},
    {"experts.down_proj", "experts expert_inter hidden"},
    {"experts.down_proj_bias", "experts hidden"},
};

/// As released: rows of outputs, packed.
constexpr SampleRow sample_packed_mixture[] = {
    {"router.weight", "experts hidden"},
    {"router.bias", "experts"},
    {"experts.gate_up_proj", "experts 2*expert_inter hidden", StoredAs::experts},
    {"experts.gate_up_proj_bias", "experts 2*expert_inter"},
    {"experts.down_proj", "experts hidden expert_inter", StoredAs::experts},
    {"experts.down_proj_bias", "experts hidden"},
};

void add_tensors(SampleTensors& tensors) {
  add_sample_ends(tensors);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    add_sample_layer(tensors, prefix, {sample_attention(), sample_attention_biases(), more_of_attention});
    tensors.add(prefix + "mlp.",
                tensors.is_quantized() ? std::span<const SampleRow>(sample_packed_mixture) : sample_mixture);
  }
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors},
          {.form = "mxfp4",
           .config = config_with(sample_config, R"({"hidden_size": 64, "intermediate_size": 96})"),
           .expert_encoding = "mxfp4_gpt_oss",
           .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> gpt_oss() {
  return {{.family = "gpt_oss",
           .model_types = {"gpt_oss"},
           .layouts = {"automodel", "transformers", "torchtitan"},
           .hf_marks = {"model.layers.{layer}.mlp.experts.gate_up_proj_bias"},
           .native_marks = {"model.layers.{layer}.mlp.experts.gate_up_proj_bias",
                            "layers.{layer}.moe.routed_experts.inner_experts.mlp1_bias"},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
