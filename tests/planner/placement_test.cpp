#include <gtest/gtest.h>

#include "planner/names/tensor_spec.h"
#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

using Kind = Placement::Kind;

TEST(placement, boxes_hold_what_torch_chunk_deals_out) {
  Random random(1);
  for (int round = 0; round < 1500; ++round) {
    const Shape shape = random_shape(random, random.between(0, 3), 0, 12);
    const Mesh mesh = random_mesh(random, std::ssize(shape));
    for_each_index(mesh.shape, [&](const Shape& coordinate) {
      const IndexLists lists = index_lists(shape, mesh, coordinate);
      const Shape local = shape_of(lists);
      ASSERT_EQ(local_shape(shape, mesh.shape, coordinate, mesh.placements), local) << "round " << round;
      std::vector<int> written(static_cast<std::size_t>(volume(local)), 0);
      for (const LocalBox& box : local_boxes(shape, mesh.shape, coordinate, mesh.placements)) {
        ASSERT_FALSE(is_empty(box.global));
        for_each_index(box.global.size, [&](const Shape& step) {
          const Shape at = plus(step, box.local_offset);
          ASSERT_TRUE(holds(whole(local), at));
          ASSERT_EQ(plus(step, box.global.offset), global_index(lists, at)) << "round " << round;
          ++written[flat(at, local)];
        });
      }
      ASSERT_EQ(written, std::vector<int>(written.size(), 1)) << "round " << round;
    });
  }
}

TEST(placement, the_ranks_of_a_mesh_hold_every_element_as_often_as_there_are_replicas) {
  Random random(2);
  for (int round = 0; round < 500; ++round) {
    const Shape shape = random_shape(random, random.between(0, 3), 1, 9);
    const Mesh mesh = random_mesh(random, std::ssize(shape));
    int replicas = 1;
    for (std::size_t m = 0; m < mesh.shape.size(); ++m) {
      if (mesh.placements[m].kind == Kind::replicate) replicas *= static_cast<int>(mesh.shape[m]);
    }
    std::vector<int> count(static_cast<std::size_t>(volume(shape)), 0);
    for_each_index(mesh.shape, [&](const Shape& coordinate) {
      for (const LocalBox& box : local_boxes(shape, mesh.shape, coordinate, mesh.placements)) {
        for_each_index(box.global.size,
                       [&](const Shape& step) { ++count[flat(plus(step, box.global.offset), shape)]; });
      }
    });
    ASSERT_EQ(count, std::vector<int>(count.size(), replicas)) << "round " << round;
  }
}

TEST(placement, a_rank_holds_as_many_boxes_as_its_indices_have_runs) {
  Random random(3);
  for (int round = 0; round < 500; ++round) {
    const Shape shape = random_shape(random, random.between(0, 3), 1, 12);
    const Mesh mesh = random_mesh(random, std::ssize(shape));
    for_each_index(mesh.shape, [&](const Shape& coordinate) {
      std::size_t boxes = 1;
      for (const auto& list : index_lists(shape, mesh, coordinate)) {
        std::size_t runs = 0;
        for (std::size_t i = 0; i < list.size(); ++i) runs += i == 0 || list[i] != list[i - 1] + 1;
        boxes *= runs;
      }
      ASSERT_EQ(local_boxes(shape, mesh.shape, coordinate, mesh.placements).size(), boxes)
          << "round " << round;
    });
  }
}

TEST(placement, fsdp_over_tp_gives_each_rank_one_run_of_rows) {
  // [_StridedShard(0, split_factor=2), Shard(0)] on a (dp, tp) mesh, as torch documents it: rank (1, 0) has
  // rows 2 and 3.
  const std::vector<Placement> placements = {{Kind::strided_shard, 0, 2}, {Kind::shard, 0, 1}};
  const std::vector<LocalBox> expected = {{{{2, 0}, {2, 8}}, {0, 0}}};
  EXPECT_EQ(local_boxes({8, 8}, {2, 2}, {1, 0}, placements), expected);
}

TEST(placement, what_fits_no_mesh_or_no_tensor_is_refused) {
  const auto boxes = [](const Shape& mesh, const Shape& coordinate, std::vector<Placement> placements) {
    return [=] { local_boxes({4, 6}, mesh, coordinate, placements); };
  };
  expect_error(ErrorKind::argument, {"2 dimensions", "1 and 2"}, boxes({2, 2}, {0, 0}, {{}}));
  expect_error(ErrorKind::argument, {"2 and 1"}, boxes({2, 2}, {0}, {{}, {}}));
  expect_error(ErrorKind::argument, {"dimension 2", "[4, 6]"}, boxes({2}, {0}, {{Kind::shard, 2, 1}}));
  expect_error(ErrorKind::argument, {"dimension -1", "[4, 6]"}, boxes({2}, {0}, {{Kind::shard, -1, 1}}));
  expect_error(ErrorKind::argument, {"split factor 0"}, boxes({2}, {0}, {{Kind::strided_shard, 0, 0}}));
}

}  // namespace
}  // namespace shardwright
