/// Hunyuan, dense and with experts, and HY 3 (hy_v3). Source of names and shapes: the models
/// hunyuan_v1_dense, hunyuan_v1_moe and hy_v3 of transformers 5.23, and nemo-automodel 0.7.0, which has an
/// adapter for hy_v3 and trains the others as transformers has them. Neither has MTP.

#include <array>

#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array<std::string_view, 1> shared_mlp = {"mlp.shared_mlp.{*}"};

WeightMap dense(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

WeightMap with_experts(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, shared_mlp);
  add_layers(map, text, usual_mixture(layout));
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::array renamed = {
    Row{"mlp.router.gate.weight", "mlp.gate.weight"},
    Row{"mlp.shared_mlp.{*}", "mlp.shared_experts.{*}"},
};
constexpr std::array automodel_bias = {Row{"mlp.expert_bias", "mlp.gate.e_score_correction_bias"}};
constexpr std::array transformers_bias = {Row{"mlp.expert_bias", "mlp.e_score_correction_bias"}};

WeightMap hy_v3(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  leave_out_mtp_layers(map, text, catalog);
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, renamed);
  if (layout == "automodel") {
    add_layers(map, text, automodel_bias);
  } else {
    add_layers(map, text, transformers_bias);
  }
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::string_view dense_config = R"({
  "architectures": ["HunYuanDenseV1ForCausalLM"], "model_type": "hunyuan_v1_dense",
  "tie_word_embeddings": true})";
constexpr std::string_view mixture_config = R"({
  "architectures": ["HunYuanMoEV1ForCausalLM"], "model_type": "hunyuan_v1_moe", "num_experts": 4,
  "moe_topk": 2, "intermediate_size": 40})";
constexpr std::string_view hy_v3_config = R"({
  "architectures": ["HYV3ForCausalLM"], "model_type": "hy_v3", "num_experts": 4, "num_experts_per_tok": 2,
  "moe_intermediate_size": 40, "num_shared_experts": 1, "first_k_dense_replace": 1,
  "num_nextn_predict_layers": 1})";

constexpr SampleRow norms_of_heads[] = {{"query_layernorm.weight", "head_dim"},
                                        {"key_layernorm.weight", "head_dim"}};
constexpr SampleRow sample_router[] = {{"gate.wg.weight", "experts hidden", StoredAs::f32}};
constexpr SampleRow hy_v3_router[] = {{"router.gate.weight", "experts hidden"},
                                      {"expert_bias", "experts", StoredAs::f32}};

void add_dense(SampleTensors& tensors) {
  add_sample_ends(tensors);
  add_dense_decoder(tensors, "model.", {sample_attention(), norms_of_heads});
}

void add_mixture(SampleTensors& tensors) {
  add_sample_ends(tensors);
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    add_sample_layer(tensors, prefix, {sample_attention(), norms_of_heads});
    tensors.add(prefix + "mlp.", sample_router);
    tensors.add(prefix + "mlp.experts.{expert}.", sample_expert());
    tensors.add(prefix + "mlp.shared_mlp.", sample_shared_expert());
  }
}

void add_hy_v3(SampleTensors& tensors) {
  add_sample_ends(tensors);
  const std::int64_t layers = tensors.number("num_hidden_layers");
  for (std::int64_t layer = 0; layer < layers + tensors.number("num_nextn_predict_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    add_sample_layer(tensors, prefix, {sample_attention(), sample_head_norms()});
    if (layer >= layers) tensors.add(prefix, sample_mtp());
    if (layer < tensors.number("first_k_dense_replace")) {
      tensors.add(prefix + "mlp.", sample_mlp());
      continue;
    }
    tensors.add(prefix + "mlp.", hy_v3_router);
    tensors.add(prefix + "mlp.experts.{expert}.", sample_expert());
    tensors.add(prefix + "mlp.shared_mlp.", sample_shared_expert());
  }
}

std::vector<Sample> dense_samples() {
  return {{.form = "bf16", .config = std::string(dense_config), .add_tensors = add_dense}};
}
std::vector<Sample> mixture_samples() {
  return {{.form = "bf16", .config = std::string(mixture_config), .add_tensors = add_mixture}};
}
std::vector<Sample> hy_v3_samples() {
  return {{.form = "bf16", .config = std::string(hy_v3_config), .add_tensors = add_hy_v3}};
}

}  // namespace

std::vector<Model> hunyuan() {
  return {
      {.family = "hunyuan_v1_dense",
       .model_types = {"hunyuan_v1_dense"},
       .layouts = {"automodel", "transformers"},
       .trained_as_transformers = true,
       .weight_map = dense,
       .samples = dense_samples},
      {.family = "hunyuan_v1_moe",
       .model_types = {"hunyuan_v1_moe"},
       .layouts = {"transformers"},
       .refused = {automodel_is_transformers},
       .hf_marks = {"model.layers.{layer}.mlp.gate.wg.weight"},
       .weight_map = with_experts,
       .samples = mixture_samples},
      {.family = "hy_v3",
       .model_types = {"hy_v3", "hy_mt2"},
       .layouts = {"automodel", "transformers"},
       .hf_marks = {"model.layers.{layer}.mlp.router.gate.weight"},
       .weight_map = hy_v3,
       .samples = hy_v3_samples},
  };
}

}  // namespace shardwright
