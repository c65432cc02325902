/// Mixtral. Source of names and shapes: MixtralForCausalLM of transformers 5.23, which nemo-automodel 0.7.0
/// trains as it is.

#include <array>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array router = {Row{"block_sparse_moe.gate.weight", "mlp.gate.weight"}};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, numbered_experts(layout), "block_sparse_moe.experts.");
  add_layers(map, text, router);
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
  "num_experts_per_tok": 2, "intermediate_size": 40})";

constexpr SampleRow sample_router[] = {{"gate.weight", "experts hidden"}};

void add_tensors(SampleTensors& tensors) {
  add_sample_ends(tensors);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    add_sample_layer(tensors, prefix, {sample_attention()});
    tensors.add(prefix + "block_sparse_moe.", sample_router);
    tensors.add(prefix + "block_sparse_moe.experts.{expert}.", sample_numbered_expert());
  }
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> mixtral() {
  return {{.family = "mixtral",
           .model_types = {"mixtral"},
           .layouts = {"transformers"},
           .refused = {automodel_is_transformers},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
