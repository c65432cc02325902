/// Kimi K2.5, text and vision. Source of names and shapes: the released names, the model kimi_k25 of
/// transformers 5.23, and the adapters kimi_k25_vl of nemo-automodel 0.7.0 and kimi_k2_7 of torchtitan 0.3.0.
/// transformers' vision tower turns the halves of a head where the files have neighbours turned.

#include <array>
#include <string>

#include "planner/models/config.h"
#include "planner/models/known_models.h"
#include "planner/models/rules.h"
#include "planner/models/samples.h"

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

constexpr std::string_view sample_config = R"({
  "architectures": ["Kimi_K25ForConditionalGeneration"], "model_type": "kimi_k25",
  "projection_hidden_size": 16,
  "text_config": {"model_type": "deepseek_v3", "num_key_value_heads": 4, "head_dim": null, "q_lora_rank": 36,
  "kv_lora_rank": 20, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6,
  "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
  "moe_intermediate_size": 40, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1,
  "num_nextn_predict_layers": 0},
  "vision_config": {"model_type": "kimi_k25_vision", "hidden_size": 16, "intermediate_size": 20,
  "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "pos_emb_height": 4,
  "pos_emb_width": 4}})";

constexpr SampleRow around_blocks[] = {
    {"encoder.final_layernorm.weight", "hidden_size"},
    {"encoder.final_layernorm.bias", "hidden_size"},
    {"patch_embed.pos_emb.weight", "pos_emb_height pos_emb_width hidden_size"},
    {"patch_embed.proj.weight", "hidden_size 3 patch_size patch_size"},
    {"patch_embed.proj.bias", "hidden_size"},
};
constexpr SampleRow sample_block[] = {
    {"norm0.weight", "hidden_size"},
    {"norm0.bias", "hidden_size"},
    {"norm1.weight", "hidden_size"},
    {"norm1.bias", "hidden_size"},
    {"wqkv.weight", "3*hidden_size hidden_size"},
    {"wqkv.bias", "3*hidden_size"},
    {"wo.weight", "hidden_size hidden_size"},
    {"wo.bias", "hidden_size"},
    {"mlp.fc0.weight", "intermediate_size hidden_size"},
    {"mlp.fc0.bias", "intermediate_size"},
    {"mlp.fc1.weight", "hidden_size intermediate_size"},
    {"mlp.fc1.bias", "hidden_size"},
};

void add_tensors(SampleTensors& tensors) {
  const std::string model = "language_model.model.";
  constexpr std::string_view part = "vision_config";
  add_sample_ends(tensors, model, "language_model.lm_head.weight");
  add_mixture_decoder(tensors, model, {sample_latent_attention()});
  tensors.add("vision_tower.", around_blocks, part);
  for (std::int64_t block = 0; block < tensors.number("num_hidden_layers", part); ++block)
    tensors.add("vision_tower.encoder.blocks." + std::to_string(block) + ".", sample_block, part);
  const std::int64_t width = tensors.number("hidden", part);
  const std::int64_t merged = 4 * width;  // 2 x 2 patches
  const std::int64_t hidden = tensors.number("hidden");
  tensors.add("mm_projector.pre_norm.weight", DType::BF16, {width});
  tensors.add("mm_projector.pre_norm.bias", DType::BF16, {width});
  tensors.add("mm_projector.proj.0.weight", DType::BF16, {merged, merged});
  tensors.add("mm_projector.proj.0.bias", DType::BF16, {merged});
  tensors.add("mm_projector.proj.2.weight", DType::BF16, {hidden, merged});
  tensors.add("mm_projector.proj.2.bias", DType::BF16, {hidden});
}

std::vector<Sample> samples() {
  return {{.form = "bf16", .config = std::string(sample_config), .add_tensors = add_tensors},
          {.form = "int4",
           .config = config_with(sample_config, R"({"hidden_size": 64, "moe_intermediate_size": 96})"),
           .expert_encoding = "int4_group32",
           .add_tensors = add_tensors}};
}

}  // namespace

std::vector<Model> kimi_k25() {
  return {{.family = "kimi_k25",
           .model_types = {"kimi_k25"},
           .layouts = {"automodel", "transformers", "torchtitan"},
           .hf_marks = {"mm_projector.proj.{*}"},
           .text_names = {"language_model.model."},
           .lora_modules = "automodel",
           .weight_map = weight_map,
           .samples = samples}};
}

}  // namespace shardwright
