/// Two ranks load a released checkpoint, each its part, and compare it with what torch makes of the same
/// bytes.

#include <ATen/ATen.h>
#include <shardwright/shardwright.h>
#include <shardwright/torch.h>

#include <cmath>
#include <fstream>

#include "ranks.h"

namespace {

/// A stored tensor, as torch understands its bytes.
at::Tensor stored(const shardwright::Catalog& catalog, const std::string& name, at::ScalarType dtype) {
  const shardwright::SourceTensor& tensor = catalog.find(name).front();
  const at::Tensor bytes = at::empty({static_cast<std::int64_t>(tensor.end - tensor.begin)}, at::kByte);
  std::ifstream file(catalog.path_of(tensor), std::ios::binary);
  file.seekg(static_cast<std::streamoff>(tensor.begin));
  file.read(static_cast<char*>(bytes.data_ptr()), bytes.numel());
  return bytes.view(dtype).view(tensor.shape);
}

/// FP8 times a power of two for each 32 elements of a row, rounded once: MXFP8 by its definition.
at::Tensor decoded(const shardwright::Catalog& catalog, const std::string& name) {
  const at::Tensor elements = stored(catalog, name, at::kFloat8_e4m3fn).to(at::kDouble);
  const at::Tensor exponents = stored(catalog, name + "_scale_inv", at::kByte).to(at::kDouble) - 127;
  return (elements * at::exp2(exponents).repeat_interleave(32, 1)).to(at::kBFloat16);
}

void load_rank(const shardwright::Job& job, const std::filesystem::path& path) {
  // README: load
  // This rank holds half of the 4 experts, and a norm that every rank holds whole.
  const shardwright::Placement shard_0{shardwright::Placement::Kind::shard, 0};
  const at::Tensor experts = at::empty({2, 32, 64}, at::kBFloat16);
  const at::Tensor norm = at::empty({64}, at::kFloat);
  const std::vector<shardwright::TensorSpec> specs{
      shardwright::describe("model.layers.1.mlp.experts.down_projs", experts, {4, 32, 64}, {job.ranks},
                            {job.rank}, {shard_0}),
      shardwright::describe("model.norm.weight", norm),
  };
  const shardwright::LoadReport report = shardwright::load_checkpoint(specs, path, job);
  shardwright::mark_written({experts, norm});
  // README: end

  expect(report.bytes_read == report.bytes_needed, "a rank reads what it needs");
  expect(report.tensors == 5, "two experts with their scales, and the norm");
  const shardwright::Catalog catalog = shardwright::read_catalog(path);
  const std::string layer = "language_model.model.layers.1.block_sparse_moe.experts.";
  for (int e = 0; e < 2; ++e) {
    const std::string name = layer + std::to_string(2 * job.rank + e) + ".w2.weight";
    expect(at::equal(experts[e], decoded(catalog, name).t()), name + " is as torch decodes it, transposed");
  }
}

}  // namespace

int main() {
  const std::filesystem::path path = new_folder() / "checkpoint";
  shardwright::generate(path, {.preset = "tiny"});
  on_ranks(2, [&](const shardwright::Job& job) { load_rank(job, path); });

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

  expect(report.bytes_read == report.bytes_needed, "a rank reads what it needs");
  expect(experts.to(at::kFloat).abs().sum().item<float>() > 0, "the experts have arrived");
  expect(norm.abs().sum().item<float>() > 0, "the norm has arrived");
  std::filesystem::remove_all(path.parent_path());
  return 0;
}
