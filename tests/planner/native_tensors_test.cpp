#include "planner/native_tensors.h"

#include <gtest/gtest.h>

#include "planner/models/models.h"
#include "tests/planner/random_layouts.h"
#include "tests/planner/released_model.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

TEST(native_tensors, the_released_model_fills_the_native_tensors_of_the_reference) {
  const Catalog catalog = preset_catalog("full");
  std::map<std::string, Shape> found;
  std::int64_t elements = 0;
  for (const NativeTensor& tensor : native_tensors(catalog, weight_map_for(catalog))) {
    EXPECT_TRUE(found.emplace(tensor.fqn, tensor.shape).second) << tensor.fqn;
    EXPECT_EQ(tensor.stacked, tensor.fqn.find(".mlp.experts.") != std::string::npos) << tensor.fqn;
    const bool is_bias = tensor.fqn.ends_with("e_score_correction_bias");
    EXPECT_EQ(tensor.dtype, is_bias ? DType::F32 : DType::BF16) << tensor.fqn;
    elements += volume(tensor.shape);
  }
  EXPECT_TRUE(found == released_shapes("minimax_m3_vl.native.txt"));
  EXPECT_EQ(found.size(), 1665U);
  EXPECT_EQ(elements / 100'000'000, 4345);
}

TEST(native_tensors, block_scaled_weights_get_the_dtype_asked_for_and_others_keep_theirs) {
  const Catalog catalog = preset_catalog("tiny");
  std::map<std::string, DType> dtypes;
  for (const NativeTensor& tensor : native_tensors(catalog, weight_map_for(catalog), DType::F16))
    dtypes[tensor.fqn] = tensor.dtype;
  EXPECT_EQ(dtypes.at("model.layers.0.self_attn.q_proj.weight"), DType::F16);
  EXPECT_EQ(dtypes.at("model.layers.1.mlp.experts.down_projs"), DType::F16);
  EXPECT_EQ(dtypes.at("model.mtp.layers.0.eh_proj.weight"), DType::F16);
  EXPECT_EQ(dtypes.at("model.norm.weight"), DType::BF16);
  EXPECT_EQ(dtypes.at("model.layers.1.mlp.gate.e_score_correction_bias"), DType::F32);
}

TEST(native_tensors, an_absurd_expert_number_is_refused_before_anything_is_counted_by_it) {
  for (const std::string number : {"2", "9223372036854775807"}) {
    const std::string name =
        "language_model.model.layers.1.block_sparse_moe.experts." + number + ".w2.weight";
    const Catalog catalog =
        catalog_of({{"language_model.lm_head.weight", DType::BF16, {4, 4}}, {name, DType::BF16, {4, 4}}});
    expect_error(ErrorKind::malformed, {name, "model.safetensors", "2 tensors"},
                 [&] { native_tensors(catalog, weight_map_for(catalog)); });
  }
}

TEST(native_tensors, a_mesh_is_read_from_names_and_sizes_and_nothing_else) {
  const std::vector<MeshDimension> mesh = parse_mesh("ep=8,ep_shard=2");
  ASSERT_EQ(mesh.size(), 2U);
  EXPECT_EQ(mesh[0].name, "ep");
  EXPECT_EQ(mesh[0].size, 8);
  EXPECT_EQ(mesh[1].name, "ep_shard");
  EXPECT_EQ(mesh[1].size, 2);
  EXPECT_TRUE(parse_mesh("").empty());
  for (const char* text :
       {"ep", "ep=", "ep=0", "ep=-2", "ep=x", "ep=8x", "tp=2", "=2", ",", "ep=2,", ",ep=2", "ep=2,,shard=2",
        "ep = 2", "ep=99999999999999999999", "ep=2=3", "ep=4611686018427387904,shard=4611686018427387904"})
    expect_error(ErrorKind::argument, {"mesh", text}, [&] { parse_mesh(text); });
}

TEST(native_tensors, a_mesh_dimension_shards_the_tensors_that_it_speaks_of) {
  const NativeTensor experts{"e", DType::BF16, {8, 6, 4}, true};
  const NativeTensor matrix{"m", DType::BF16, {8, 6}, false};
  const NativeTensor scalar{"s", DType::BF16, {}, false};
  const auto sharded = [](const NativeTensor& tensor, const char* name) {
    const Placement placement = placements_on_mesh(tensor, {{name, 2}})[0];
    return placement.kind == Placement::Kind::shard ? placement.dimension : -1;
  };
  const std::map<std::string, std::array<int, 3>> expected = {
      {"ep", {0, -1, -1}},   {"ep_shard", {1, -1, -1}}, {"ep_replicate", {-1, -1, -1}},
      {"fsdp", {-1, 0, -1}}, {"shard", {0, 0, -1}},     {"replicate", {-1, -1, -1}},
  };
  for (const auto& [name, dimensions] : expected) {
    EXPECT_EQ(sharded(experts, name.c_str()), dimensions[0]) << name;
    EXPECT_EQ(sharded(matrix, name.c_str()), dimensions[1]) << name;
    EXPECT_EQ(sharded(scalar, name.c_str()), dimensions[2]) << name;
  }
}

TEST(native_tensors, ranks_are_numbered_row_major_over_the_mesh) {
  const NativeTensor experts{"e", DType::BF16, {5, 6, 4}, true};
  const std::vector<MeshDimension> mesh = parse_mesh("ep=2,ep_shard=3");
  const Mesh reference{{2, 3}, {{Placement::Kind::shard, 0, 1}, {Placement::Kind::shard, 1, 1}}};
  std::int64_t rank = 0;
  for_each_index({2, 3}, [&](const Shape& coordinate) {
    const TensorSpec spec = specs_on_mesh({experts}, mesh, rank++).at(0);
    const IndexLists lists = index_lists(experts.shape, reference, coordinate);
    EXPECT_EQ(spec.local_shape, shape_of(lists));
    EXPECT_EQ(spec.boxes.at(0).global.offset, global_index(lists, {0, 0, 0}));
  });
  for (const std::int64_t bad : {-1, 6})
    expect_error(ErrorKind::argument, {std::to_string(bad), "6 ranks"},
                 [&] { specs_on_mesh({experts}, mesh, bad); });
  EXPECT_EQ(specs_on_mesh({experts}, {}, 0).at(0).local_shape, experts.shape);
}

}  // namespace
}  // namespace shardwright
