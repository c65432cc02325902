/// Kimi K2.5, text and vision. Source of names and shapes: the released names, the model kimi_k25 of
/// transformers 5.23, and the adapters kimi_k25_vl of nemo-automodel 0.7.0 and kimi_k2_7 of torchtitan 0.3.0.
/// transformers' vision tower turns the halves of a head where the files have neighbours turned.

#include <array>
#include <string>

#include "planner/models/config.h"
#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::array automodel = {
    Row{"mm_projector.proj.0.{*}", "model.multi_modal_projector.linear_1.{*}"},
    Row{"mm_projector.proj.2.{*}", "model.multi_modal_projector.linear_2.{*}"},
    Row{"mm_projector.pre_norm.{*}", "model.multi_modal_projector.pre_norm.{*}"},
    Row{"vision_tower.patch_embed.proj.{*}", "model.vision_tower.patch_embed.proj.{*}"},
    Row{"vision_tower.{*}", "model.vision_tower.{*}"},
};
/// Kimi-VL's names, which nemo-automodel reads, too.
constexpr std::array projector_of_kimi_vl = {
    Row{"multi_modal_projector.linear_1.{*}", "model.multi_modal_projector.linear_1.{*}"},
    Row{"multi_modal_projector.linear_2.{*}", "model.multi_modal_projector.linear_2.{*}"},
    Row{"multi_modal_projector.pre_norm.{*}", "model.multi_modal_projector.pre_norm.{*}"},
};
constexpr std::array transformers = {
    Row{"mm_projector.proj.0.{*}", "model.mm_projector.in_proj.{*}"},
    Row{"mm_projector.proj.2.{*}", "model.mm_projector.out_proj.{*}"},
    Row{"mm_projector.pre_norm.{*}", "model.mm_projector.pre_norm.{*}"},
    Row{"vision_tower.patch_embed.pos_emb.weight",
        "model.vision_tower.patch_embed.pos_emb.position_embeddings"},
    Row{"vision_tower.patch_embed.{*}", "model.vision_tower.patch_embed.{*}"},
    Row{"vision_tower.encoder.final_layernorm.{*}", "model.vision_tower.final_layernorm.{*}"},
};
constexpr std::array transformers_block = {
    Row{"norm0.{*}", "norm1.{*}"},
    Row{"norm1.{*}", "norm2.{*}"},
    Row{"mlp.fc0.{*}", "mlp.fc1.{*}"},
    Row{"mlp.fc1.{*}", "mlp.fc2.{*}"},
    Row{"wo.{*}", "attn.proj.{*}"},
    Row{"wqkv.weight", "attn.q_proj.weight", "(0/3 vision_heads d 2) i -> (vision_heads 2 d) i"},
    Row{"wqkv.weight", "attn.k_proj.weight", "(1/3 vision_heads d 2) i -> (vision_heads 2 d) i"},
    Row{"wqkv.weight", "attn.v_proj.weight", "(2/3 o) i -> o i"},
    Row{"wqkv.bias", "attn.q_proj.bias", "(0/3 vision_heads d 2) -> (vision_heads 2 d)"},
    Row{"wqkv.bias", "attn.k_proj.bias", "(1/3 vision_heads d 2) -> (vision_heads 2 d)"},
    Row{"wqkv.bias", "attn.v_proj.bias", "(2/3 o) -> o"},
};

constexpr std::array torchtitan = {
    Row{"mm_projector.proj.0.{*}", "vision_encoder.projector.linear_1.{*}"},
    Row{"mm_projector.proj.2.{*}", "vision_encoder.projector.linear_2.{*}"},
    Row{"mm_projector.{*}", "vision_encoder.projector.{*}"},
    Row{"vision_tower.patch_embed.proj.weight", "vision_encoder.patch_embed.weight", "o c h w -> o (c h w)"},
    Row{"vision_tower.patch_embed.proj.bias", "vision_encoder.patch_embed.bias"},
    Row{"vision_tower.patch_embed.pos_emb.weight", "vision_encoder.pos_embed"},
    Row{"vision_tower.encoder.final_layernorm.{*}", "vision_encoder.final_norm.{*}"},
};
constexpr std::array torchtitan_block = {
    Row{"norm0.{*}", "norm1.{*}"},
    Row{"norm1.{*}", "norm2.{*}"},
    Row{"mlp.fc0.{*}", "mlp.linear_fc1.{*}"},
    Row{"mlp.fc1.{*}", "mlp.linear_fc2.{*}"},
    Row{"wo.{*}", "attn.proj.{*}"},
    Row{"wqkv.weight", "attn.wq.weight", "(0/3 o) i -> o i"},
    Row{"wqkv.weight", "attn.wk.weight", "(1/3 o) i -> o i"},
    Row{"wqkv.weight", "attn.wv.weight", "(2/3 o) i -> o i"},
    Row{"wqkv.bias", "attn.wq.bias", "(0/3 o) -> o"},
    Row{"wqkv.bias", "attn.wk.bias", "(1/3 o) -> o"},
    Row{"wqkv.bias", "attn.wv.bias", "(2/3 o) -> o"},
};

/// transformers 5.23 does not find the way back to the released names: this is what it saves.
Dialect names_as_saved() {
  return {{"language_model.model.layers.", "language_model.model.blocks."},
          {"vision_tower.patch_embed.proj.", "vision_tower.encoder.patch_embed.proj."},
          {"mm_projector.pre_norm.", "model.mm_projector.pre_norm."}};
}

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  TextModel text = text_model(layout);
  if (any_begins(catalog, "language_model.model.blocks.")) map.dialect = names_as_saved();
  text.hf = "language_model.model.";
  text.hf_head = "language_model.lm_head.weight";
  if (layout == "automodel") {
    text.native = "model.language_model.model.";
    text.native_head = "model.language_model.lm_head.weight";
    add_rules(map.rules, automodel, "", "");
    add_rules(map.rules, projector_of_kimi_vl, "", "", /*known=*/true, /*alternative=*/1);
  } else if (layout == "torchtitan") {
    add_rules(map.rules, torchtitan, "", "");
    add_rules(map.rules, torchtitan_block, "vision_tower.encoder.blocks.{layer}.",
              "vision_encoder.layers.{layer}.");
    add_layers(map, text, torchtitan_latent_attention());
  } else {
    text.native = "model.language_model.";
    add_rules(map.rules, transformers, "", "");
    add_rules(map.rules, transformers_block, "vision_tower.encoder.blocks.{layer}.",
              "model.vision_tower.layers.{layer}.");
    leave_out_mtp_layers(map, text, catalog);
    for (const char* spelling : {"num_attention_heads", "vt_num_attention_heads"}) {
      if (const auto heads = number_in_config(catalog, "vision_config", spelling))
        map.sizes.emplace("vision_heads", *heads);
    }
  }
  add_experts(map, text, split_experts(layout));
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, usual_mixture(layout));
  if (layout != "torchtitan") add_layers(map, text, mtp_names());
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> kimi_k25() {
  return {{.family = "kimi_k25",
           .model_types = {"kimi_k25"},
           .layouts = {"automodel", "transformers", "torchtitan"},
           .hf_marks = {"mm_projector.proj.{*}"},
           .text_names = {"language_model.model."},
           .lora_modules = "automodel",
           .weight_map = weight_map}};
}

}  // namespace shardwright
