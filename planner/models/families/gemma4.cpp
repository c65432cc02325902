/// Gemma 4, with vision tower and text alone. Source of names and shapes: the models gemma4 and gemma4_text
/// of transformers 5.23, which keep the files' names, and the adapter of nemo-automodel 0.7.0, which holds
/// each expert's down_proj multiplied by its router's per_expert_scale.

#include <array>
#include <string>

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::array<std::string_view, 6> beside_text = {
    "model.vision_tower.{*}", "model.embed_vision.{*}",    "model.audio_tower.{*}",
    "model.embed_audio.{*}",  "model.vision_embedder.{*}", "model.audio_embedder.{*}"};
constexpr std::array<std::string_view, 5> around_layers = {
    "embed_tokens_per_layer.{*}", "per_layer_model_projection.{*}", "per_layer_projection_norm.{*}",
    "router.{*}", "layer_scalar"};
constexpr std::array<std::string_view, 1> layer = {"{*}"};
constexpr std::string_view factor = "router.per_expert_scale";
constexpr std::array mixture_of_automodel = {
    Row{"experts.gate_up_proj", "moe.experts.gate_and_up_projs", "e o i -> e i o"},
    Row{.hf = "experts.down_proj",
        .native = "moe.experts.down_projs",
        .axes = "e o i -> e i o",
        .factor = factor},
    Row{"router.proj.weight", "moe.gate.proj.weight"},
    Row{"router.scale", "moe.gate.scale"},
};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  TextModel text = text_model(layout);
  text.hf = text.native = vision_models_text(catalog);
  if (layout == "automodel") {
    add_layers(map, text, mixture_of_automodel);
    map.ignored.emplace_back(text.hf_layer() + std::string(factor));
  }
  add_layers(map, text, layer);
  add_rules(map.rules, around_layers, text.hf, text.native);
  add_rules(map.rules, beside_text, "", "");
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> gemma4() {
  return {{.family = "gemma4",
           .model_types = {"gemma4", "gemma4_text"},
           .layouts = {"automodel", "transformers"},
           .weight_map = weight_map}};
}

}  // namespace shardwright
