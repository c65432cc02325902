/// Kimi Linear. Source of names and shapes: KimiLinearForCausalLM of transformers 5.23 and the adapter of
/// nemo-automodel 0.7.0, which keeps the three convolutions apart.

#include <array>

#include "planner/models/models.h"
#include "planner/models/rules.h"

namespace shardwright {
namespace {

constexpr std::array mixture = {
    Row{"block_sparse_moe.gate.{*}", "mlp.gate.{*}"},
    Row{"block_sparse_moe.shared_experts.{*}", "mlp.shared_experts.{*}"},
};
constexpr std::array automodel = {
    Row{"self_attn.A_log", "self_attn._fp32_params.A_log"},
    Row{"self_attn.dt_bias", "self_attn._fp32_params.dt_bias"},
};
constexpr std::array transformers = {
    Row{"self_attn.A_log", "self_attn.forget_gate.A_log"},
    Row{"self_attn.dt_bias", "self_attn.forget_gate.dt_bias"},
    Row{"self_attn.f_a_proj.{*}", "self_attn.forget_gate.f_a_proj.{*}"},
    Row{"self_attn.f_b_proj.{*}", "self_attn.forget_gate.f_b_proj.{*}"},
    Row{"self_attn.q_conv1d.weight", "self_attn.conv1d.weight", "o 1 t -> (0/3 o) 1 t"},
    Row{"self_attn.k_conv1d.weight", "self_attn.conv1d.weight", "o 1 t -> (1/3 o) 1 t"},
    Row{"self_attn.v_conv1d.weight", "self_attn.conv1d.weight", "o 1 t -> (2/3 o) 1 t"},
};
/// transformers 5.23 stores the dense layers' MLP under this name, too.
constexpr std::array dense_as_saved = {
    Row{"block_sparse_moe.gate_proj.weight", "mlp.gate_proj.weight"},
    Row{"block_sparse_moe.up_proj.weight", "mlp.up_proj.weight"},
    Row{"block_sparse_moe.down_proj.weight", "mlp.down_proj.weight"},
};
constexpr std::array dense = {
    Row{"mlp.gate_proj.weight", "mlp.gate_proj.weight"},
    Row{"mlp.up_proj.weight", "mlp.up_proj.weight"},
    Row{"mlp.down_proj.weight", "mlp.down_proj.weight"},
};

WeightMap weight_map(std::string_view layout, const Catalog& catalog) {
  WeightMap map;
  const TextModel text = text_model(layout);
  add_experts(map, text, numbered_experts(layout), "block_sparse_moe.experts.");
  add_layers(map, text, mixture);
  if (layout == "automodel") {
    add_layers(map, text, automodel);
  } else {
    add_layers(map, text, transformers);
  }
  add_layers(map, text, dense);
  add_layers(map, text, dense_as_saved, /*alternative=*/1);
  add_layers(map, text, usual_layer(layout));
  add_outside_layers(map, text, catalog);
  return map;
}

}  // namespace

std::vector<Model> kimi_linear() {
  return {{.family = "kimi_linear",
           .model_types = {"kimi_linear", "kimi_linear_48b_a3b"},
           .layouts = {"automodel", "transformers"},
           .weight_map = weight_map}};
}

}  // namespace shardwright
