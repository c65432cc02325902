/// Qwen3-MoE, such as Qwen3-30B-A3B. Source of names and shapes: Qwen3MoeForCausalLM of transformers 5.23 and
/// the Qwen3 adapters of nemo-automodel 0.7.0 and torchtitan 0.3.0. Some layers may have a dense MLP.

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  if (layout == "torchtitan") add_layers(map, text, torchtitan_attention());
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view sample_config = R"({
  "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4,
  "num_experts_per_tok": 2, "moe_intermediate_size": 40})";

void add_tensors(SampleTensors& tensors) {
  add_sample_ends(tensors);
  add_mixture_decoder(tensors, "model.", {sample_attention(), sample_head_norms()});
}

std::vector<Sample> samples() { return bf16_and_block_fp8(sample_config, add_tensors); }

}  // namespace

std::vector<Model> qwen3_moe() {
  return {{.family = "qwen3_moe",
           .model_types = {"qwen3_moe"},
           .layouts = {"automodel", "transformers", "torchtitan"},
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
