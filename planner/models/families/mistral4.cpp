/// Mistral 4 and Mistral 3 (Pixtral), with vision tower and text alone. Source of names and shapes: the
/// models mistral3, mistral4 and ministral3 of transformers 5.23 and the adapters of nemo-automodel 0.7.0.

#include <array>
#include <string>

#include "planner/models/config.h"
#include "planner/models/models.h"
#include "planner/models/rules.h"

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
constexpr std::array<std::string_view, 14> quantised = {"self_attn.q_proj",
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
  for (const std::string_view module : quantised)
    map.ignored.emplace_back(layer + std::string(module) + ".activation_scale");
  for (const char* stack : {"gate_up_proj", "down_proj"})
    map.ignored.emplace_back(layer + "mlp.experts." + stack + "_activation_scale");
}

WeightMap weight_map(std::string_view layout, const Catalog& catalog, bool is_mistral4) {
  WeightMap map;
  TextModel text = text_model(layout);
  const bool is_nested = any_begins(catalog, "model.language_model.");
  if (is_nested) map.dialect = nested_names();
  if (is_nested || any_begins(catalog, "language_model.")) {
    text.hf = "language_model.model.";
    text.hf_head = "language_model.lm_head.weight";
    text.native = "model.language_model.";
    // Its own text model is a whole one inside the VL model, head and all; other text models are
    // transformers'.
    if (layout == "automodel" && is_mistral4) {
      text.native = "model.language_model.model.";
      text.native_head = "model.language_model.lm_head.weight";
    }
  }
  add_experts(map, text, stacked_experts(layout));
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  add_rules(map.rules, beside_text, "", "");
  add_outside_layers(map, text, catalog);
  ignore_scales_of_activations(map, text.hf_layer());
  map.absent.emplace_back(text.native_layer() + "mlp.gate.e_score_correction_bias");
  return map;
}

bool says_mistral4(const Catalog& catalog) { return model_type_of(catalog, "text_config") == "mistral4"; }

WeightMap mistral3_map(std::string_view layout, const Catalog& catalog) {
  return weight_map(layout, catalog, says_mistral4(catalog));
}
WeightMap mistral4_map(std::string_view layout, const Catalog& catalog) {
  return weight_map(layout, catalog, catalog.config.empty() || says_mistral4(catalog));
}

}  // namespace

std::vector<Model> mistral4() {
  const auto family = [](std::string_view name, auto map) {
    return Model{.family = name,
                 .model_types = {name},
                 .layouts = {"automodel", "transformers"},
                 .text_names = {"language_model.model.", "model.language_model.", "model."},
                 .lora_modules = "automodel",
                 .weight_map = map};
  };
  return {family("mistral3", mistral3_map), family("mistral4", mistral4_map)};
}

}  // namespace shardwright
