/// Dense Qwen: Qwen2, Qwen2.5 and Qwen3. Source of names and shapes: Qwen2ForCausalLM and Qwen3ForCausalLM of
/// transformers 5.23, whose names nemo-automodel 0.7.0 keeps, and the Qwen3 adapter of torchtitan 0.3.0.

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_layers(map, text, usual_layer(layout));
  if (layout == "torchtitan") add_layers(map, text, torchtitan_attention());
  add_outside_layers(map, text, catalog);
  return map;
}

void add_qwen2(SampleTensors& tensors) {
  add_sample_ends(tensors);
  add_dense_decoder(tensors, "model.", {sample_attention(), sample_attention_biases()});
}
void add_qwen3(SampleTensors& tensors) {
  add_sample_ends(tensors);
  add_dense_decoder(tensors, "model.", {sample_attention(), sample_head_norms()});
}

std::vector<Sample> qwen2_samples() {
  return {
      {.form = "bf16",
       .config = R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"})",
       .add_tensors = add_qwen2},
      {.form = "tied",
       .config =
           R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": true})",
       .add_tensors = add_qwen2}};
}

std::vector<Sample> qwen3_samples() {
  return {
      {.form = "bf16",
       .config = R"({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})",
       .add_tensors = add_qwen3},
      {.form = "tied",
       .config =
           R"({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": true})",
       .add_tensors = add_qwen3},
      {.form = "fp8",
       .config = R"({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"})",
       .encoding = "block_fp8",
       .scale = DType::BF16,
       .add_tensors = add_qwen3}};
}

}  // namespace

std::vector<Model> qwen3() {
  return {
      {.family = "qwen2",
       .model_types = {"qwen2"},
       .layouts = {"automodel", "transformers"},
       .trained_as_transformers = true,
       .weight_map = weight_map,
       .samples = qwen2_samples},
      {.family = "qwen3",
       .model_types = {"qwen3"},
       .layouts = {"automodel", "transformers", "torchtitan"},
       .trained_as_transformers = true,
       .weight_map = weight_map,
       .samples = qwen3_samples},
  };
}

}  // namespace shardwright
