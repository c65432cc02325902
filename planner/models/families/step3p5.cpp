/// Step 3.5 and 3.7. Source of names and shapes: the adapters step3p5 and step3p7 of nemo-automodel 0.7.0 and
/// the model step3p7 of transformers 5.23, which has no MTP and no text-only sibling. The file has experts
/// stacked, gates and ups apart.

#include <array>
#include <string>

#include "planner/models/config.h"
#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

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
  // Without a config, the layers of multi-token prediction have no name in the files, least of all their own.
  if (!number_in_config(catalog, "num_hidden_layers"))
    std::erase_if(map.rules, [](const Rule& rule) { return rule.hf.text() == "{*}"; });
  return map;
}

constexpr std::string_view text_config_of_step = R"({
  "architectures": ["Step3p5ForCausalLM"], "model_type": "step3p5", "moe_intermediate_size": 40,
  "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "share_expert_dim": 28,
  "mlp_layer_types": ["dense", "sparse"], "layer_types": ["full_attention", "full_attention"],
  "num_nextn_predict_layers": 1, "sliding_window": 16})";
constexpr std::string_view vision_config_of_step = R"({
  "architectures": ["Step3p7ForConditionalGeneration"], "model_type": "step3p7",
  "text_config": {"model_type": "step3p5", "moe_intermediate_size": 40,
  "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "share_expert_dim": 28,
  "mlp_layer_types": ["dense", "sparse"], "layer_types": ["full_attention", "full_attention"],
  "num_nextn_predict_layers": 1, "sliding_window": 16},
  "vision_config": {"model_type": "step3p5_vision", "hidden_size": 12, "mlp_ratio": 2.0,
  "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4, "image_size": 16}})";

constexpr SampleRow gates_of_heads[] = {{"g_proj.weight", "heads hidden"}};
constexpr SampleRow sample_mixture[] = {
    {"moe.gate.weight", "experts hidden"},
    {"moe.router_bias", "experts", StoredAs::f32},
    {"moe.gate_proj.weight", "experts expert_inter hidden"},
    {"moe.up_proj.weight", "experts expert_inter hidden"},
    {"moe.down_proj.weight", "experts hidden expert_inter"},
};
constexpr SampleRow before_mtp[] = {
    {"enorm.weight", "hidden"}, {"hnorm.weight", "hidden"}, {"eh_proj.weight", "hidden 2*hidden"}};
constexpr SampleRow head_of_mtp[] = {{"transformer.shared_head.norm.weight", "hidden"},
                                     {"transformer.shared_head.output.weight", "vocab hidden"}};

void add_text(SampleTensors& tensors) {
  add_sample_ends(tensors);
  const std::int64_t layers = tensors.number("num_hidden_layers");
  for (std::int64_t layer = 0; layer < layers + tensors.number("num_nextn_predict_layers"); ++layer) {
    const std::string prefix = layer_prefix("model.", layer);
    add_sample_layer(tensors, prefix, {sample_attention(), sample_head_norms(), gates_of_heads});
    if (tensors.kind("mlp_layer_types", layer) == "sparse") {
      tensors.add(prefix, sample_mixture);
      tensors.add(prefix + "share_expert.", sample_shared_expert());
    } else {
      tensors.add(prefix + "mlp.", sample_mlp());
    }
    if (layer < layers) continue;
    tensors.add(prefix, before_mtp);
    tensors.add(prefix, head_of_mtp);
  }
}

constexpr SampleRow around_blocks[] = {
    {"conv1.weight", "hidden_size 3 patch_size patch_size"},
    {"ln_pre.weight", "hidden_size"},
    {"ln_pre.bias", "hidden_size"},
    {"vit_downsampler1.weight", "2*hidden_size hidden_size 3 3"},
    {"vit_downsampler1.bias", "2*hidden_size"},
    {"vit_downsampler2.weight", "4*hidden_size 2*hidden_size 3 3"},
    {"vit_downsampler2.bias", "4*hidden_size"},
};
constexpr SampleRow sample_block[] = {
    {"attn.in_proj_weight", "3*hidden_size hidden_size"},
    {"attn.in_proj_bias", "3*hidden_size"},
    {"attn.out_proj.weight", "hidden_size hidden_size"},
    {"attn.out_proj.bias", "hidden_size"},
    {"ln_1.weight", "hidden_size"},
    {"ln_1.bias", "hidden_size"},
    {"ln_2.weight", "hidden_size"},
    {"ln_2.bias", "hidden_size"},
    {"ls_1.gamma", "hidden_size"},
    {"ls_2.gamma", "hidden_size"},
    {"mlp.c_fc.weight", "mlp_ratio*hidden_size hidden_size"},
    {"mlp.c_fc.bias", "mlp_ratio*hidden_size"},
    {"mlp.c_proj.weight", "hidden_size mlp_ratio*hidden_size"},
    {"mlp.c_proj.bias", "hidden_size"},
};

void add_with_vision(SampleTensors& tensors) {
  constexpr std::string_view part = "vision_config";
  add_text(tensors);
  tensors.add("vision_model.", around_blocks, part);
  const std::int64_t width = tensors.number("hidden", part);
  const std::int64_t side = tensors.number("image_size", part) / tensors.number("patch_size", part);
  tensors.add("vision_model.positional_embedding", DType::BF16, {side * side, width});
  for (std::int64_t block = 0; block < tensors.number("num_hidden_layers", part); ++block)
    tensors.add("vision_model.transformer.resblocks." + std::to_string(block) + ".", sample_block, part);
  tensors.add("vit_large_projector.weight", DType::BF16, {tensors.number("hidden"), 4 * width});
}

std::vector<Sample> samples_of_3p5() {
  return {{.form = "bf16", .config = std::string(text_config_of_step), .add_tensors = add_text}};
}
std::vector<Sample> samples_of_3p7() {
  return {{.form = "bf16", .config = std::string(vision_config_of_step), .add_tensors = add_with_vision}};
}

}  // namespace

std::vector<Model> step3p5() {
  return {
      {.family = "step3p5",
       .model_types = {"step3p5"},
       .layouts = {"automodel"},
       .weight_map = step3p5,
       .samples = samples_of_3p5},
      {.family = "step3p7",
       .model_types = {"step3p7"},
       .layouts = {"automodel", "transformers"},
       .hf_marks = {"vit_large_projector."},
       .lora_modules = "automodel",
       .weight_map = step3p7,
       .samples = samples_of_3p7},
  };
}

}  // namespace shardwright
