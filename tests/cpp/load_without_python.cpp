/// Loads a generated checkpoint from C++ alone, as the README shows, and looks at what arrived.

#include <ATen/ATen.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <vector>

#include "planner/models/models.h"
#include "planner/torch/torch_tensor.h"
#include "storage/format/read_catalog.h"
#include "storage/load/load.h"
#include "storage/tools/generate.h"

namespace {

void expect(bool holds, const char* claim) {
  if (holds) return;
  std::cerr << "not so: " << claim << "\n";
  std::exit(1);
}

}  // namespace

int main() {
  const std::filesystem::path path =
      std::filesystem::temp_directory_path() / ("shardwright_example_" + std::to_string(getpid()));
  shardwright::generate(path, {.preset = "tiny"});

  // README: C++
  const shardwright::Catalog catalog = shardwright::read_catalog(path);
  const shardwright::WeightMap map = shardwright::weight_map_for(catalog);

  // Rank 1 of 2, holding experts 2 and 3 of 4, and a norm that every rank holds whole.
  const at::Tensor experts = at::empty({2, 32, 64}, at::kBFloat16);
  const at::Tensor norm = at::empty({64}, at::kFloat);
  const shardwright::Placement shard_0{shardwright::Placement::Kind::shard, 0};
  const std::vector<shardwright::TensorSpec> specs{
      shardwright::describe("model.layers.1.mlp.experts.down_projs", experts, {4, 32, 64}, {2}, {1},
                            {shard_0}),
      shardwright::describe("model.norm.weight", norm),
  };

  const shardwright::LoadPlan plan = shardwright::plan_load(specs, catalog, map);
  const shardwright::LoadReport report = shardwright::load(plan, catalog, specs);
  shardwright::mark_written({experts, norm});
  // README: end

  std::cout << report.bytes_read << " bytes read of " << report.bytes_needed << " needed\n";
  expect(report.bytes_read == report.bytes_needed, "a rank reads what it needs");
  expect(report.tensors == 5, "two experts with their scales, and the norm");
  expect(experts.to(at::kFloat).abs().sum().item<float>() > 0, "the experts have arrived");
  expect(norm.abs().sum().item<float>() > 0, "the norm has arrived");
  std::filesystem::remove_all(path);
  return 0;
}
