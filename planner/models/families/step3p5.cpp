/// Step 3.5 and 3.7. Source of names and shapes: the adapters step3p5 and step3p7 of nemo-automodel 0.7.0 and
/// the model step3p7 of transformers 5.23, which has no MTP and no text-only sibling. The file has experts
/// stacked, gates and ups apart.

#include <array>
#include <string>

#include "planner/models/config.h"
#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::array automodel = {
    Row{"moe.gate_proj.weight", "moe.experts.gate_and_up_projs", "e o i -> e i (0/2 o)"},
    Row{"moe.up_proj.weight", "moe.experts.gate_and_up_projs", "e o i -> e i (1/2 o)"},
    Row{"moe.down_proj.weight", "moe.experts.down_projs", "e o i -> e i o"},
    Row{"moe.router_bias", "moe.gate.e_score_correction_bias"},
    Row{"moe.gate.{*}", "moe.gate.{*}"},
    Row{"share_expert.{*}", "share_expert.{*}"},
};
constexpr std::array transformers = {
    Row{"moe.gate_proj.weight", "mlp.experts.gate_up_proj", "e o i -> e (0/2 o) i"},
    Row{"moe.up_proj.weight", "mlp.experts.gate_up_proj", "e o i -> e (1/2 o) i"},
    Row{"moe.down_proj.weight", "mlp.experts.down_proj"},
    Row{"moe.router_bias", "mlp.gate.e_score_correction_bias"},
    Row{"moe.gate.{*}", "mlp.gate.{*}"},
    Row{"share_expert.{*}", "mlp.shared_experts.{*}"},
};
constexpr std::array<std::string_view, 1> mtp = {"transformer.{*}"};

WeightMap step3p5(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_layers(map, text, automodel);
  add_layers(map, text, usual_layer(layout));
  add_layers(map, text, mtp_names());
  add_layers(map, text, mtp);
  add_outside_layers(map, text, catalog);
  return map;
}

constexpr std::array vision_of_automodel = {
    Row{"vision_model.{*}", "model.vision_model.{*}"},
    Row{"vit_large_projector.{*}", "model.vit_large_projector.{*}"},
};
constexpr std::array vision_of_transformers = {
    Row{"vit_large_projector.{*}", "model.multi_modal_projector.{*}"},
    Row{"vision_model.conv1.weight", "model.vision_model.embeddings.patch_embedding.weight"},
    Row{"vision_model.positional_embedding", "model.vision_model.embeddings.position_embedding.weight"},
    Row{"vision_model.ln_pre.{*}", "model.vision_model.pre_layernorm.{*}"},
    Row{"vision_model.vit_downsampler1.{*}", "model.vision_model.downsampler1.{*}"},
    Row{"vision_model.vit_downsampler2.{*}", "model.vision_model.downsampler2.{*}"},
};
constexpr std::array block_of_transformers = {
    Row{"ln_1.{*}", "layernorm_before.{*}"},
    Row{"ln_2.{*}", "layernorm_after.{*}"},
    Row{"ls_1.gamma", "lambda_1"},
    Row{"ls_2.gamma", "lambda_2"},
    Row{"mlp.c_fc.{*}", "mlp.fc1.{*}"},
    Row{"mlp.c_proj.{*}", "mlp.fc2.{*}"},
    Row{"attn.out_proj.{*}", "self_attn.out_proj.{*}"},
    Row{"attn.in_proj_weight", "self_attn.q_proj.weight", "(0/3 vision_heads d 2) i -> (vision_heads 2 d) i"},
    Row{"attn.in_proj_weight", "self_attn.k_proj.weight", "(1/3 vision_heads d 2) i -> (vision_heads 2 d) i"},
    Row{"attn.in_proj_weight", "self_attn.v_proj.weight", "(2/3 o) i -> o i"},
    Row{"attn.in_proj_bias", "self_attn.q_proj.bias", "(0/3 vision_heads d 2) -> (vision_heads 2 d)"},
    Row{"attn.in_proj_bias", "self_attn.k_proj.bias", "(1/3 vision_heads d 2) -> (vision_heads 2 d)"},
    Row{"attn.in_proj_bias", "self_attn.v_proj.bias", "(2/3 o) -> o"},
};
constexpr std::array all_of_mtp = {Row{"{*}", "{*}"}};

WeightMap step3p7(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  TextModel text = text_model(layout);
  text.native = "model.language_model.";
  if (layout == "automodel") {
    if (const auto layers = number_in_config(catalog, "num_hidden_layers"))
      add_rules(map.rules, all_of_mtp, "model.layers.{layer+" + std::to_string(*layers) + "}.",
                "mtp.layers.{layer}.");
    add_layers(map, text, automodel);
    add_rules(map.rules, vision_of_automodel, "", "");
  } else {
    leave_out_mtp_layers(map, text, catalog);
    add_layers(map, text, transformers);
    add_rules(map.rules, vision_of_transformers, "", "");
    add_rules(map.rules, block_of_transformers, "vision_model.transformer.resblocks.{layer}.",
              "model.vision_model.layers.{layer}.");
    for (const char* spelling : {"num_attention_heads", "heads"}) {
      if (const auto heads = number_in_config(catalog, "vision_config", spelling))
        map.sizes.emplace("vision_heads", *heads);
    }
  }
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> step3p5() {
  return {
      {.family = "step3p5", .model_types = {"step3p5"}, .layouts = {"automodel"}, .weight_map = step3p5},
      {.family = "step3p7",
       .model_types = {"step3p7"},
       .layouts = {"automodel", "transformers"},
       .hf_marks = {"vit_large_projector."},
       .lora_modules = "automodel",
       .weight_map = step3p7},
  };
}

}  // namespace shardwright
