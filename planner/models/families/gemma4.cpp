/// Gemma 4, with vision tower and text alone. Source of names and shapes: the models gemma4 and gemma4_text
/// of transformers 5.23, which keep the files' names. nemo-automodel 0.7.0 multiplies each expert's down_proj
/// by its router's per_expert_scale: tables speak of places, so that its layout is refused where there are
/// experts.

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

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  TextModel text = text_model(layout);
  text.hf = text.native = vision_models_text(catalog);
  add_layers(map, text, layer);
  add_rules(map.rules, around_layers, text.hf, text.native);
  add_rules(map.rules, beside_text, "", "");
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> gemma4() {
  return {
      {.family = "gemma4",
       .model_types = {"gemma4", "gemma4_text"},
       .layouts = {"transformers"},
       .refused =
           {{"automodel",
             "nemo-automodel holds each expert's down_proj multiplied by router.per_expert_scale, and "
             "rules do not multiply; pass layout=\"transformers\", which holds both factors as they are (and "
             "has nemo-automodel's names where there are no experts)"}},
       .text_names = {"model.language_model.", "model."},
       .weight_map = weight_map}};
}

}  // namespace shardwright
