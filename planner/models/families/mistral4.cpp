/// Mistral 4 and Mistral 3 (Pixtral), with vision tower and text alone. Source of names and shapes: the
/// models mistral3, mistral4 and ministral3 of transformers 5.23 and the adapters of nemo-automodel 0.7.0.

#include <array>
#include <string>

#include "planner/models/config.h"
#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

namespace shardwright {
namespace {

constexpr std::array beside_text = {Row{"vision_tower.{*}", "model.vision_tower.{*}"},
                                    Row{"multi_modal_projector.{*}", "model.multi_modal_projector.{*}"}};

/// Some releases have the names that transformers' modules have, such as Mistral Medium 3.5.
Dialect nested_names() {
  return {{"language_model.model.", "model.language_model."},
          {"language_model.lm_head.", "lm_head."},
          {"vision_tower.", "model.vision_tower."},
          {"multi_modal_projector.", "model.multi_modal_projector."}};
}

/// Modules whose FP8 releases have scales of activations, which training has no use for.
constexpr std::array<std::string_view, 14> quantized = {"self_attn.q_proj",
                                                        "self_attn.k_proj",
                                                        "self_attn.v_proj",
                                                        "self_attn.o_proj",
                                                        "self_attn.q_a_proj",
                                                        "self_attn.q_b_proj",
                                                        "self_attn.kv_a_proj_with_mqa",
                                                        "self_attn.kv_b_proj",
                                                        "mlp.gate_proj",
                                                        "mlp.up_proj",
                                                        "mlp.down_proj",
                                                        "mlp.shared_experts.gate_proj",
                                                        "mlp.shared_experts.up_proj",
                                                        "mlp.shared_experts.down_proj"};

void ignore_scales_of_activations(WeightMap& map, const std::string& layer) {
  for (const std::string_view module : quantized)
    map.ignored.emplace_back(layer + std::string(module) + ".activation_scale");
  for (const char* stack : {"gate_up_proj", "down_proj"})
    map.ignored.emplace_back(layer + "mlp.experts." + stack + "_activation_scale");
}

void add_decoder(WeightMap& map, const TextModel& text) {
  add_experts(map, text, stacked_experts(text.layout));
  add_layers(map, text, usual_layer(text.layout));
  add_layers(map, text, usual_mixture(text.layout));
  map.absent.emplace_back(text.native_layer() + "mlp.gate.e_score_correction_bias");
}

void add_text(WeightMap& map, const TextModel& text, const Catalog& catalog) {
  add_decoder(map, text);
  add_rules(map.rules, beside_text, "", "");
  add_outside_layers(map, text, catalog);
  ignore_scales_of_activations(map, text.hf_layer());
}

/// Mistral 4's own text model is a whole one inside nemo-automodel's VL model, head and all; other text
/// models are transformers'.
TextModel text_in_vision_model(std::string_view layout, bool is_whole_inside) {
  TextModel text = text_model(layout);
  text.hf = "language_model.model.";
  text.hf_head = "language_model.lm_head.weight";
  text.native = is_whole_inside ? "model.language_model.model." : "model.language_model.";
  if (is_whole_inside) text.native_head = "model.language_model.lm_head.weight";
  return text;
}

bool says_mistral4(const Catalog& catalog) { return model_type_of(catalog, "text_config") == "mistral4"; }

WeightMap weight_map(std::string_view layout, const Catalog& catalog, bool is_mistral4) {
  WeightMap map;
  const bool is_nested = any_begins(catalog, "model.language_model.");
  if (is_nested) map.dialect = nested_names();
  if (is_nested || any_begins(catalog, "language_model.")) {
    const bool is_whole_inside = layout == "automodel" && is_mistral4;
    add_text(map, text_in_vision_model(layout, is_whole_inside), catalog);
  } else {
    add_text(map, text_model(layout), catalog);
  }
  return map;
}

WeightMap weight_map_of_4(std::string_view layout, const Catalog& catalog) {
  return weight_map(layout, catalog, catalog.config.empty() || says_mistral4(catalog));
}

/// Mistral 3 always has a vision tower. Where there is no checkpoint, either text model may be in it.
WeightMap weight_map_of_3(std::string_view layout, const Catalog& catalog) {
  if (!catalog.tensors.empty()) return weight_map(layout, catalog, says_mistral4(catalog));
  WeightMap map;
  if (layout == "automodel") {
    const TextModel whole = text_in_vision_model(layout, /*is_whole_inside=*/true);
    const Row outside_layers[] = {{"model.embed_tokens.weight", "model.embed_tokens.weight"},
                                  {"model.norm.weight", "model.norm.weight"},
                                  {"lm_head.weight", "lm_head.weight"}};
    add_decoder(map, whole);
    add_rules(map.rules, outside_layers, "language_model.", "model.language_model.");
  }
  add_text(map, text_in_vision_model(layout, /*is_whole_inside=*/false), catalog);
  return map;
}

constexpr std::string_view vision_config_of_3 = R"({
  "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "spatial_merge_size": 2,
  "text_config": {"model_type": "ministral3"},
  "vision_config": {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 20,
  "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "patch_size": 4, "image_size": 16}})";
constexpr std::string_view vision_config_of_4 = R"({
  "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "spatial_merge_size": 2,
  "text_config": {"model_type": "mistral4", "num_key_value_heads": 4, "head_dim": null, "q_lora_rank": 36,
  "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
  "moe_intermediate_size": 40, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
  "vision_config": {"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 20,
  "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8, "patch_size": 4, "image_size": 16}})";
constexpr std::string_view text_config_of_4 = R"({
  "architectures": ["Mistral4ForCausalLM"], "model_type": "mistral4", "num_key_value_heads": 4, "head_dim": null, "q_lora_rank": 36,
  "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
  "moe_intermediate_size": 40, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1})";

constexpr SampleRow around_tower[] = {{"ln_pre.weight", "hidden_size"},
                                      {"patch_conv.weight", "hidden_size 3 patch_size patch_size"}};
constexpr SampleRow tower_layer[] = {
    {"attention_norm.weight", "hidden_size"},
    {"ffn_norm.weight", "hidden_size"},
    {"attention.q_proj.weight", "heads*head_dim hidden_size"},
    {"attention.k_proj.weight", "heads*head_dim hidden_size"},
    {"attention.v_proj.weight", "heads*head_dim hidden_size"},
    {"attention.o_proj.weight", "hidden_size heads*head_dim"},
    {"feed_forward.gate_proj.weight", "intermediate_size hidden_size"},
    {"feed_forward.up_proj.weight", "intermediate_size hidden_size"},
    {"feed_forward.down_proj.weight", "hidden_size intermediate_size"},
};

/// With what nested names begin; otherwise nothing does.
void add_vision(SampleTensors& tensors, const std::string& before = "") {
  constexpr std::string_view part = "vision_config";
  const std::string projector = before + "multi_modal_projector.";
  const std::int64_t width = tensors.number("hidden", part);
  const std::int64_t hidden = tensors.number("hidden");
  tensors.add(before + "vision_tower.", around_tower, part);
  for (std::int64_t k = 0; k < tensors.number("num_hidden_layers", part); ++k)
    tensors.add(layer_prefix(before + "vision_tower.transformer.", k), tower_layer, part);
  tensors.add(projector + "norm.weight", DType::BF16, {width});
  tensors.add(projector + "patch_merger.merging_layer.weight", DType::BF16, {width, 4 * width});  // 2 x 2
  tensors.add(projector + "linear_1.weight", DType::BF16, {hidden, width});
  tensors.add(projector + "linear_2.weight", DType::BF16, {hidden, hidden});
}

void add_of_4(SampleTensors& tensors, const std::string& model, const std::string& head) {
  add_sample_ends(tensors, model, head);
  constexpr SampleRow router[] = {{"gate.weight", "experts hidden"}};
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    const std::string prefix = layer_prefix(model, layer);
    add_sample_layer(tensors, prefix, {sample_latent_attention()});
    if (layer < tensors.number("first_k_dense_replace")) {
      tensors.add(prefix + "mlp.", sample_mlp());
      continue;
    }
    tensors.add(prefix + "mlp.", router);
    tensors.add(prefix + "mlp.experts.", sample_stacked_experts());
    tensors.add(prefix + "mlp.shared_experts.", sample_shared_expert());
  }
}

void add_text_of_4(SampleTensors& tensors) { add_of_4(tensors, "model.", "lm_head.weight"); }
void add_vision_of_4(SampleTensors& tensors) {
  add_of_4(tensors, "language_model.model.", "language_model.lm_head.weight");
  add_vision(tensors);
}

void add_scales_of_activations(SampleTensors& tensors, const std::string& model) {
  for (std::int64_t layer = 0; layer < tensors.number("num_hidden_layers"); ++layer) {
    for (const char* module : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"})
      tensors.add(layer_prefix(model, layer) + module + ".activation_scale", DType::BF16, {});
  }
}

void add_of_3(SampleTensors& tensors) {
  const std::string model = "language_model.model.";
  add_sample_ends(tensors, model, "language_model.lm_head.weight");
  add_dense_decoder(tensors, model, {sample_attention()});
  if (tensors.is_quantized()) add_scales_of_activations(tensors, model);
  add_vision(tensors);
}
void add_nested_of_3(SampleTensors& tensors) {
  const std::string model = "model.language_model.";
  add_sample_ends(tensors, model);
  add_dense_decoder(tensors, model, {sample_attention()});
  add_vision(tensors, "model.");
}

std::vector<Sample> samples_of_3() {
  return {{.form = "bf16", .config = std::string(vision_config_of_3), .add_tensors = add_of_3},
          {.form = "nested", .config = std::string(vision_config_of_3), .add_tensors = add_nested_of_3},
          {.form = "mistral4", .config = std::string(vision_config_of_4), .add_tensors = add_vision_of_4},
          {.form = "fp8",
           .config = std::string(vision_config_of_3),
           .encoding = "tensor_fp8",
           .scale = DType::BF16,
           .add_tensors = add_of_3}};
}
std::vector<Sample> samples_of_4() {
  return {{.form = "bf16", .config = std::string(text_config_of_4), .add_tensors = add_text_of_4}};
}

}  // namespace

std::vector<Model> mistral4() {
  const std::vector<std::string_view> text_names{"language_model.model.", "model.language_model.", "model."};
  return {{.family = "mistral3",
           .model_types = {"mistral3"},
           .layouts = {"automodel", "transformers"},
           .text_names = text_names,
           .lora_modules = "automodel",
           .weight_map = weight_map_of_3,
           .samples = samples_of_3},
          {.family = "mistral4",
           .model_types = {"mistral4"},
           .layouts = {"automodel", "transformers"},
           .text_names = text_names,
           .lora_modules = "automodel",
           .weight_map = weight_map_of_4,
           .samples = samples_of_4}};
}

}  // namespace shardwright
