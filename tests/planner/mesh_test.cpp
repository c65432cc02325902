#include "planner/names/mesh.h"

#include <gtest/gtest.h>

#include <array>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

TEST(mesh, a_mesh_is_read_from_names_and_sizes_and_nothing_else) {
  const std::vector<MeshDimension> mesh = parse_mesh("ep=8,ep_shard=2");
  ASSERT_EQ(mesh.size(), 2U);
  EXPECT_EQ(mesh[0].name, "ep");
  EXPECT_EQ(mesh[0].size, 8);
  EXPECT_EQ(mesh[1].name, "ep_shard");
  EXPECT_EQ(mesh[1].size, 2);
  EXPECT_TRUE(parse_mesh("").empty());
  for (const char* text : {"ep", "ep=", "ep=0", "ep=-2", "ep=x", "ep=8x", "tp=2", "=2", ",", "ep=2,", ",ep=2",
                           "ep=2,,shard=2", "ep = 2", "ep=99999999999999999999", "ep=2=3", "pp", "dp=0",
                           "ep=4611686018427387904,shard=4611686018427387904"})
    expect_error(ErrorKind::argument, {"mesh", text}, [&] { parse_mesh(text); });
}

TEST(mesh, a_name_that_comes_twice_is_refused) {
  expect_error(ErrorKind::argument, {"ep=2,dp=2,ep=4", "ep again in 'ep=4'"},
               [] { parse_mesh("ep=2,dp=2,ep=4"); });
}

/// Which dimension of experts, of others, and of others that all of a stage share, a dimension of the mesh
/// shards; -1: none.
const std::map<std::string, std::array<int, 3>> sharded_dimension = {
    {"pp", {-1, -1, -1}},          {"dp", {1, 0, 0}},    {"ep", {0, -1, 0}},   {"ep_shard", {1, -1, 0}},
    {"ep_replicate", {-1, -1, 0}}, {"fsdp", {-1, 0, 0}}, {"shard", {0, 0, 0}}, {"replicate", {-1, -1, -1}},
};

int found_dimension(const NativeTensor& tensor, const std::vector<MeshDimension>& mesh, DenseSharding dense) {
  const Placement placement = placements_on_mesh(tensor, mesh, dense)[0];
  return placement.kind == Placement::Kind::shard ? placement.dimension : -1;
}

TEST(mesh, a_dimension_shards_the_tensors_that_it_speaks_of) {
  const NativeTensor experts{"e", DType::BF16, {8, 6, 4}, true};
  const NativeTensor matrix{"m", DType::BF16, {8, 6}, false};
  const NativeTensor scalar{"s", DType::BF16, {}, false};
  for (const auto& [name, dimensions] : sharded_dimension) {
    for (const DenseSharding dense : {DenseSharding::named, DenseSharding::stage}) {
      const bool stage = dense == DenseSharding::stage;
      EXPECT_EQ(found_dimension(experts, {{name, 2}}, dense), dimensions[0]) << name;
      EXPECT_EQ(found_dimension(matrix, {{name, 2}}, dense), dimensions[stage ? 2 : 1]) << name;
      EXPECT_EQ(found_dimension(scalar, {{name, 2}}, dense), -1) << name;
    }
  }
}

TEST(mesh, a_mesh_with_pp_or_dp_divides_what_is_no_expert_over_the_stage_unless_told_otherwise) {
  const NativeTensor matrix{"m", DType::BF16, {8, 6}, false};
  EXPECT_EQ(found_dimension(matrix, parse_mesh("ep=2"), DenseSharding::by_mesh), -1);
  EXPECT_EQ(found_dimension(matrix, parse_mesh("ep=2,pp=2"), DenseSharding::by_mesh), 0);
  EXPECT_EQ(found_dimension(matrix, parse_mesh("ep=2,dp=2"), DenseSharding::by_mesh), 0);
  EXPECT_EQ(found_dimension(matrix, parse_mesh("ep=2,dp=2"), DenseSharding::named), -1);
  for (const auto& [name, dense] : std::map<std::string, DenseSharding>{{"auto", DenseSharding::by_mesh},
                                                                        {"named", DenseSharding::named},
                                                                        {"stage", DenseSharding::stage}})
    EXPECT_EQ(dense_sharding_named(name), dense);
  expect_error(ErrorKind::argument, {"dense", "'all'"}, [] { dense_sharding_named("all"); });
}

double sum_of_squares(const std::vector<double>& bytes) {
  double sum = 0;
  for (const double b : bytes) sum += b * b;
  return sum;
}

/// The least sum of squares of any way to cut the layers from `begin` on into `stages` runs.
double least_sum(const std::vector<double>& layers, std::size_t begin, std::size_t stages) {
  if (stages == 1)
    return sum_of_squares(
        {std::accumulate(layers.begin() + static_cast<std::ptrdiff_t>(begin), layers.end(), 0.0)});
  double least = std::numeric_limits<double>::infinity();
  double first = 0;
  for (std::size_t end = begin + 1; end + stages - 1 <= layers.size(); ++end) {
    first += layers[end - 1];
    least = std::min(least, first * first + least_sum(layers, end, stages - 1));
  }
  return least;
}

TEST(mesh, stages_are_runs_of_layers_as_even_as_any) {
  Random random(1);
  for (int round = 0; round < 300; ++round) {
    const std::int64_t layers = random.between(2, 8);
    const std::int64_t stages = random.between(2, std::min<std::int64_t>(layers, 5));
    std::vector<NativeTensor> tensors{
        {"embedding", DType::BF16, {random.between(0, 60)}, false, before_layers},
        {"head", DType::F32, {random.between(0, 60)}, false, after_layers}};
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      for (std::int64_t n = random.between(1, 3); n > 0; --n)
        tensors.push_back({"layer", DType::BF16, {random.between(0, 20), 2}, false, layer});
    }
    random.shuffle(tensors);
    const std::vector<std::int64_t> found = pipeline_stages(tensors, stages);
    std::vector<double> by_layer(static_cast<std::size_t>(layers), 0.0);
    std::vector<double> by_stage(static_cast<std::size_t>(stages), 0.0);
    std::map<std::int64_t, std::set<std::int64_t>> stages_of_layer, layers_of_stage;
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      const double bytes = static_cast<double>(volume(tensors[t].shape)) * (tensors[t].fqn == "head" ? 4 : 2);
      std::int64_t layer = tensors[t].layer;
      if (layer == before_layers) layer = 0;
      if (layer == after_layers) layer = layers - 1;
      by_layer[static_cast<std::size_t>(layer)] += bytes;
      by_stage.at(static_cast<std::size_t>(found[t])) += bytes;
      stages_of_layer[layer].insert(found[t]);
      layers_of_stage[found[t]].insert(layer);
    }
    std::int64_t last = 0;
    for (const auto& [layer, its_stages] : stages_of_layer) {
      ASSERT_EQ(its_stages.size(), 1U);
      ASSERT_GE(*its_stages.begin(), last);
      last = *its_stages.begin();
    }
    ASSERT_EQ(std::ssize(layers_of_stage), stages);  // none is empty
    ASSERT_EQ(*stages_of_layer[0].begin(), 0);
    ASSERT_EQ(last, stages - 1);
    ASSERT_EQ(sum_of_squares(by_stage), least_sum(by_layer, 0, static_cast<std::size_t>(stages)))
        << "round " << round;
  }
}

TEST(mesh, more_stages_than_layers_are_refused) {
  const std::vector<NativeTensor> tensors{{"a", DType::BF16, {4}, false, 0},
                                          {"b", DType::BF16, {4}, false, 1}};
  expect_error(ErrorKind::argument, {"pp=3", "1 to 2"}, [&] { pipeline_stages(tensors, 3); });
  expect_error(ErrorKind::argument, {"pp=3", "1 to 2"},
               [&] { specs_on_mesh(tensors, parse_mesh("pp=3"), 0); });
}

TEST(mesh, every_element_is_held_once_by_each_of_its_copies) {
  Random random(2);
  const std::vector<std::string> names{"pp",           "dp",   "ep",    "ep_shard",
                                       "ep_replicate", "fsdp", "shard", "replicate"};
  for (int round = 0; round < 150; ++round) {
    std::vector<NativeTensor> tensors;
    for (std::int64_t layer = 0; layer < 3; ++layer) {
      const std::string at = std::to_string(layer);
      tensors.push_back({"e" + at, DType::BF16, random_shape(random, 3, 1, 5), true, layer});
      tensors.push_back(
          {"m" + at, DType::BF16, random_shape(random, random.between(0, 2), 1, 7), false, layer});
    }
    std::vector<std::string> order = names;
    random.shuffle(order);
    std::vector<MeshDimension> mesh;
    for (std::int64_t d = random.between(0, 4); d > 0; --d)
      mesh.push_back({order[static_cast<std::size_t>(d)], random.between(1, 3)});
    const TensorsOnMesh on_mesh(tensors, mesh,
                                random.one_of<DenseSharding>({DenseSharding::named, DenseSharding::stage}));
    // For each tensor and element: how often each copy holds it.
    std::vector<std::map<Shape, std::map<std::int64_t, int>>> holders(tensors.size());
    for (std::int64_t rank = 0; rank < on_mesh.ranks(); ++rank) {
      const std::vector<std::size_t> mine = on_mesh.tensors_of_rank(rank);
      const std::vector<TensorSpec> specs = on_mesh.specs_of_rank(rank);
      ASSERT_EQ(mine.size(), specs.size());
      for (std::size_t s = 0; s < specs.size(); ++s) {
        ASSERT_EQ(specs[s].fqn, tensors[mine[s]].fqn);
        ASSERT_EQ(on_mesh.stage_of_tensor(mine[s]), on_mesh.stage_of_rank(rank));
        for (const LocalBox& box : specs[s].boxes) {
          for_each_index(box.global.size, [&](const Shape& index) {
            ++holders[mine[s]][plus(index, box.global.offset)][on_mesh.copy_of_rank(mine[s], rank)];
          });
        }
      }
    }
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      ASSERT_EQ(std::ssize(holders[t]), volume(tensors[t].shape));
      for (const auto& [index, copies] : holders[t]) {
        ASSERT_EQ(std::ssize(copies), on_mesh.copies(t)) << tensors[t].fqn << to_string(index);
        for (const auto& [copy, times] : copies) ASSERT_EQ(times, 1);
      }
    }
  }
}

TEST(mesh, ranks_are_numbered_row_major_over_the_mesh) {
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
