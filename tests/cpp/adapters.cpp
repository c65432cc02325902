/// A state dict in a trainer's names becomes one in Hugging Face's, and the other way round, without files.

#include <ATen/ATen.h>
#include <shardwright/shardwright.h>
#include <shardwright/torch.h>

#include <map>

#include "ranks.h"

int main() {
  const shardwright::WeightMap map =
      shardwright::weight_map_for(shardwright::generated_catalog({.preset = "tiny"}));
  const std::string name = "model.layers.1.mlp.experts.down_projs";
  const at::Tensor experts = at::arange(4 * 32 * 64).view({4, 32, 64}).to(at::kBFloat16);
  const std::vector<shardwright::TensorSpec> native{shardwright::describe(name, experts)};

  // README: adapters
  // One tensor [4, 32, 64] of the trainer is four matrices [64, 32] of Hugging Face.
  std::map<std::string, at::Tensor> state_dict;
  std::vector<shardwright::TensorSpec> hf;
  for (const shardwright::TensorSpec& tensor : shardwright::hf_tensors_of(native, map)) {
    state_dict[tensor.fqn] = at::empty(tensor.global_shape, at::kBFloat16);
    hf.push_back(shardwright::describe(tensor.fqn, state_dict[tensor.fqn]));
  }
  shardwright::to_hf(native, hf, map);

  const at::Tensor back = at::empty_like(experts);
  shardwright::from_hf(hf, {shardwright::describe(name, back)}, map);
  // README: end

  expect(hf.size() == 4, "an HF tensor for each expert");
  for (int e = 0; e < 4; ++e) {
    const at::Tensor& matrix = state_dict.at(hf[static_cast<std::size_t>(e)].fqn);
    expect(at::equal(matrix, experts[e].t()),
           hf[static_cast<std::size_t>(e)].fqn + " is the expert, transposed");
  }
  expect(at::equal(back, experts), "the way back gives the trainer's tensor");

  // Gates and ups are the halves of another tensor, here in F32, and are cast.
  const at::Tensor joined = at::randn({4, 64, 64});
  const std::vector<shardwright::TensorSpec> of_joined{
      shardwright::describe("model.layers.1.mlp.experts.gate_and_up_projs", joined)};
  hf.clear();
  for (const shardwright::TensorSpec& tensor : shardwright::hf_tensors_of(of_joined, map)) {
    state_dict[tensor.fqn] = at::empty(tensor.global_shape, at::kBFloat16);
    hf.push_back(shardwright::describe(tensor.fqn, state_dict[tensor.fqn]));
  }
  shardwright::to_hf(of_joined, hf, map);
  expect(hf.size() == 8, "gate and up for each expert");
  for (std::size_t i = 0; i < hf.size(); ++i) {
    const bool is_gate = hf[i].fqn.find(".w1.") != std::string::npos;
    const std::string& fqn = hf[i].fqn;
    const int expert = fqn[fqn.find(".experts.") + 9] - '0';
    const at::Tensor half = joined[expert].slice(1, is_gate ? 0 : 32, is_gate ? 32 : 64);
    expect(at::equal(state_dict.at(fqn), half.t().to(at::kBFloat16)), fqn + " is its half, rounded to BF16");
  }

  // An HF tensor that no native one fills is refused, and nothing is written.
  const at::Tensor lonely = at::zeros({64});
  hf.push_back(shardwright::describe("language_model.model.norm.weight", lonely));
  const at::Tensor first = state_dict.at(hf[0].fqn).zero_();
  try {
    shardwright::to_hf(of_joined, hf, map);
  } catch (const shardwright::Error& error) {
    expect(std::string(error.what()).find("language_model.model.norm.weight") != std::string::npos,
           error.what());
    expect(first.count_nonzero().item<std::int64_t>() == 0, "the other tensors are untouched");
    return 0;
  }
  expect(false, "what no native tensor fills is refused");
}
