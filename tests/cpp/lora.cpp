/// Two ranks save an adapter of a tiny MiniMax M3, each with its experts and its rows, and load it again: as
/// ParamWrappers, and as a module for each expert.

#include <shardwright/shardwright.h>
#include <shardwright/torch.h>

#include <filesystem>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "ranks.h"

namespace {

constexpr int ranks = 2;

/// A rank's part of the LoRA tensors of a layer: half of the experts, and half of the rows.
struct Lora {
  std::vector<at::Tensor> tensors;
  std::vector<shardwright::TensorSpec> specs;
};

/// For weights of the shapes that the generated model has.
Lora lora_of(int rank, std::int64_t experts, std::int64_t hidden, std::int64_t inter) {
  constexpr std::int64_t r = 4;
  const shardwright::Placement shard_0{shardwright::Placement::Kind::shard, 0};
  const std::vector<std::pair<std::string, shardwright::Shape>> shapes{
      {"mlp.experts.lora_gate_and_up_A", {experts, hidden, r}},
      {"mlp.experts.lora_gate_and_up_B", {experts, r, 2 * inter}},
      {"mlp.experts.lora_down_A", {experts, inter, r}},
      {"mlp.experts.lora_down_B", {experts, r, hidden}},
      {"shared_experts.gate_proj.lora_A.weight", {r, hidden}},
      {"shared_experts.gate_proj.lora_B.weight", {inter, r}},
      {"shared_experts.up_proj.lora_A.weight", {r, hidden}},
      {"shared_experts.up_proj.lora_B.weight", {inter, r}},
  };
  Lora lora;
  for (const auto& [name, shape] : shapes) {
    lora.tensors.push_back(at::randn(shardwright::local_shape(shape, {ranks}, {rank}, {shard_0})));
    lora.specs.push_back(shardwright::describe("model.layers.1." + name, lora.tensors.back(), shape, {ranks},
                                               {rank}, {shard_0}));
  }
  return lora;
}

void run(const shardwright::Job& job, const std::filesystem::path& folder) {
  const int rank = job.rank;
  const shardwright::Catalog model = shardwright::generated_catalog({.preset = "tiny"});
  const std::string experts = "language_model.model.layers.1.block_sparse_moe.experts.";
  const shardwright::Shape w1 = model.find(experts + "0.w1.weight").front().shape;
  const Lora saved = lora_of(rank, 4, w1[1], w1[0]);
  expect(model.find(experts + "4.w1.weight").empty(), "the model has four experts");

  for (const char* layout : {"transformers", "huggingface"}) {
    const std::filesystem::path path = folder / layout;
    const Lora loaded = lora_of(rank, 4, w1[1], w1[0]);
    // README: lora
    shardwright::save_adapter(saved.specs, path, {.layout = layout, .alpha = 8}, job);
    const shardwright::AdapterReport report = shardwright::load_adapter(path, loaded.specs);
    // README: end
    expect(report.load.bytes_written > 0, "something was loaded");
    expect(report.layout == layout && report.config.lora_alpha >= 8, "the report says what it was");
    for (std::size_t t = 0; t < saved.tensors.size(); ++t)
      expect(at::equal(saved.tensors[t], loaded.tensors[t]), saved.specs[t].fqn + " comes back bit for bit");
    if (rank == 0) std::cout << layout << ": " << report.load.bytes_read << " bytes read\n";
  }
}

}  // namespace

int main() {
  const std::filesystem::path folder = new_folder();
  on_ranks(ranks, [&](const shardwright::Job& job) { run(job, folder); });
  std::filesystem::remove_all(folder);
  return 0;
}
