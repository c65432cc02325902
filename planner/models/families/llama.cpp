/// Llama 2 and 3, and dense Mistral. Source of names and shapes: LlamaForCausalLM and MistralForCausalLM of
/// transformers 5.23, whose names nemo-automodel 0.7.0 keeps, and the Llama 3 adapter of torchtitan 0.3.0,
/// whose rotary embedding turns neighbours: of a head's rows it has those of the two halves in turn.

#include <array>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array rotated_by_torchtitan = {
    Row{"self_attn.q_proj.weight", "attention.qkv_linear.wq.weight",
        "(num_attention_heads 2 d) i -> (num_attention_heads d 2) i"},
    Row{"self_attn.k_proj.weight", "attention.qkv_linear.wk.weight",
        "(num_key_value_heads 2 d) i -> (num_key_value_heads d 2) i"},
    Row{"self_attn.v_proj.weight", "attention.qkv_linear.wv.weight"},
    Row{"self_attn.o_proj.weight", "attention.wo.weight"},
};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  if (layout == "torchtitan") {
    add_layers(map, text, rotated_by_torchtitan);
    map.without_place.emplace_back("model.layers.{layer}.self_attn.rotary_emb.inv_freq");
  }
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

void add_tensors(SampleTensors& tensors) {
  add_sample_ends(tensors);
  add_dense_decoder(tensors, "model.", {sample_attention()});
}

std::vector<Sample> llama_samples() {
  return {
      {.form = "bf16",
       .config = R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama"})",
       .add_tensors = add_tensors},
      {.form = "tied",
       .config =
           R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": true})",
       .add_tensors = add_tensors}};
}
std::vector<Sample> mistral_samples() {
  return {{.form = "bf16",
           .config = R"({"architectures": ["MistralForCausalLM"], "model_type": "mistral"})",
           .add_tensors = add_tensors},
          {.form = "ministral3",
           .config = R"({"architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3"})",
           .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> llama() {
  return {
      {.family = "llama",
       .model_types = {"llama"},
       .layouts = {"automodel", "transformers", "torchtitan"},
       .trained_as_transformers = true,
       .sizes = {"num_attention_heads", "num_key_value_heads"},
       .weight_map = weight_map,
       .samples = llama_samples},
      {.family = "mistral",
       .model_types = {"mistral", "ministral", "ministral3"},
       .layouts = {"automodel", "transformers"},
       .trained_as_transformers = true,
       .weight_map = weight_map,
       .samples = mistral_samples},
  };
}

}  // namespace shardwright
