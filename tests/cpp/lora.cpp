/// Two ranks save an adapter of a tiny MiniMax M3, each with its experts and its rows, and load it again: as
/// ParamWrappers, and as a module for each expert.

#include <ATen/ATen.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <functional>
#include <iostream>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <utility>
#include <vector>

#include "planner/geometry/placement.h"
#include "planner/torch/exchange.h"
#include "planner/torch/torch_tensor.h"
#include "storage/lora/load_adapter.h"
#include "storage/lora/save_adapter.h"
#include "storage/tools/generate.h"

namespace {

constexpr int ranks = 2;

void expect(bool holds, const std::string& claim) {
  if (holds) return;
  std::cerr << "not so: " << claim << std::endl;
  std::_Exit(1);
}

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

void run(int rank, const std::filesystem::path& folder) {
  const auto store = c10::make_intrusive<c10d::FileStore>((folder / "store").string(), ranks);
  int round = 0;
  const shardwright::Job job{
      rank, ranks, [&](const auto& mine, const auto& answers) {
        const std::string name = "lora" + std::to_string(++round);
        return shardwright::exchange({rank, ranks, store, nullptr, name}, mine, answers);
      }};
  const shardwright::Catalog model = shardwright::generated_catalog({.preset = "tiny"});
  const std::string experts = "language_model.model.layers.1.block_sparse_moe.experts.";
  const shardwright::Shape w1 = model.find(experts + "0.w1.weight").front().shape;
  const Lora saved = lora_of(rank, 4, w1[1], w1[0]);
  expect(model.find(experts + "4.w1.weight").empty(), "the model has four experts");

  for (const char* layout : {"transformers", "huggingface"}) {
    const std::filesystem::path path = folder / layout;
    shardwright::save_adapter(saved.specs, path, {.layout = layout, .alpha = 8}, job);
    const Lora loaded = lora_of(rank, 4, w1[1], w1[0]);
    const shardwright::LoadReport report = shardwright::load_adapter(path, loaded.specs);
    expect(report.bytes_written > 0, "something was loaded");
    for (std::size_t t = 0; t < saved.tensors.size(); ++t)
      expect(at::equal(saved.tensors[t], loaded.tensors[t]), saved.specs[t].fqn + " comes back bit for bit");
    if (rank == 0) std::cout << layout << ": " << report.bytes_read << " bytes read\n";
  }
}

}  // namespace

int main() {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("shardwright_lora_" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    children.push_back(fork());
    if (children.back() != 0) continue;
    try {
      run(rank, folder);
      std::cout.flush();
      std::_Exit(0);
    } catch (const std::exception& error) {
      std::cerr << "rank " << rank << ": " << error.what() << std::endl;
      std::_Exit(1);
    }
  }
  bool all = true;
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    all = all && WIFEXITED(status) && WEXITSTATUS(status) == 0;
  }
  std::filesystem::remove_all(folder);
  return all ? 0 : 1;
}
