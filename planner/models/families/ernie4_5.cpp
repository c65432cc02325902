/// ERNIE 4.5, dense and with experts. Source of names and shapes: the models ernie4_5 and ernie4_5_moe of
/// transformers 5.23 and the adapters of nemo-automodel 0.7.0; neither has MTP.

#include <array>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::string_view bias = "mlp.moe_statics.e_score_correction_bias";  // [1, experts]
constexpr std::array automodel = {Row{bias, "mlp.gate.e_score_correction_bias", "1 e -> e"}};
constexpr std::array transformers = {Row{bias, "mlp.gate.moe_statics.e_score_correction_bias"}};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  for (const char* mtp : {"mtp_block.{*}", "mtp_emb_norm.{*}", "mtp_hidden_norm.{*}", "mtp_linear_proj.{*}"})
    map.without_place.emplace_back("model." + std::string(mtp));
  add_experts(map, text, split_experts(layout));
  if (layout == "automodel") {
    add_layers(map, text, automodel);
  } else {
    add_layers(map, text, transformers);
  }
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view dense_config = R"({
  "architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "tie_word_embeddings": true})";
constexpr std::string_view mixture_config = R"({
  "architectures": ["Ernie4_5_MoeForCausalLM"], "model_type": "ernie4_5_moe", "tie_word_embeddings": true,
  "head_dim": 12, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 40, "moe_num_shared_experts": 1,
  "moe_layer_start_index": 1, "num_nextn_predict_layers": 1})";

constexpr SampleRow sample_router[] = {{"gate.weight", "experts hidden", StoredAs::f32},
                                       {"moe_statics.e_score_correction_bias", "1 experts", StoredAs::f32}};
constexpr SampleRow sample_mtp_parts[] = {{"mtp_emb_norm.0.weight", "hidden"},
                                          {"mtp_hidden_norm.0.weight", "hidden"},
                                          {"mtp_linear_proj.0.weight", "hidden 2*hidden"}};

void add_dense(SampleTensors& tensors) {
  add_sample_ends(tensors);
  add_dense_decoder(tensors, "model.", {sample_attention()});
}

void add_mixture(SampleTensors& tensors) {
  add_sample_ends(tensors);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    add_sample_layer(tensors, prefix, {sample_attention()});
    if (layer < tensors.number("moe_layer_start_index")) {
      tensors.add(prefix + "mlp.", sample_mlp());
      continue;
    }
    tensors.add(prefix + "mlp.", sample_router);
    tensors.add(prefix + "mlp.experts.{expert}.", sample_expert());
    tensors.add(prefix + "mlp.shared_experts.", sample_shared_expert());
  }
  if (tensors.number("num_nextn_predict_layers") == 0) return;
  add_sample_layer(tensors, "model.mtp_block.0.", {sample_attention()});
  tensors.add("model.mtp_block.0.mlp.", sample_mlp());
  tensors.add("model.", sample_mtp_parts);
}

std::vector<Sample> dense_samples() {
  return {{.form = "bf16", .config = std::string(dense_config), .add_tensors = add_dense}};
}
std::vector<Sample> mixture_samples() {
  return {{.form = "bf16", .config = std::string(mixture_config), .add_tensors = add_mixture}};
}

}  // namespace

std::vector<Model> ernie4_5() {
  return {
      {.family = "ernie4_5",
       .model_types = {"ernie4_5"},
       .layouts = {"automodel", "transformers"},
       .weight_map = weight_map,
       .samples = dense_samples},
      {.family = "ernie4_5_moe",
       .model_types = {"ernie4_5_moe"},
       .layouts = {"automodel", "transformers"},
       .hf_marks = {"model.layers.{layer}.mlp.moe_statics.e_score_correction_bias"},
       .weight_map = weight_map,
       .samples = mixture_samples},
  };
}

}  // namespace shardwright
