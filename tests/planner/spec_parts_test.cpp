#include "planner/names/spec_parts.h"

#include <gtest/gtest.h>

#include "tests/planner/random_layouts.h"

namespace shardwright {
namespace {

TEST(spec_parts, a_part_of_a_tensor_has_its_memory) {
  Random random(3);
  for (int round = 0; round < 200; ++round) {
    const Shape shape = random_shape(random, random.between(1, 3), 1, 9);
    const Mesh mesh = random_mesh(random, std::ssize(shape));
    Shape coordinate;
    for (const std::int64_t size : mesh.shape) coordinate.push_back(random.between(0, size - 1));
    const IndexLists lists = index_lists(shape, mesh, coordinate);
    // Each local element holds its position in the whole tensor.
    std::vector<std::int32_t> memory(static_cast<std::size_t>(volume(shape_of(lists))));
    std::size_t filled = 0;
    for_each_index(shape_of(lists), [&](const Shape& local) {
      memory[filled++] = static_cast<std::int32_t>(flat(global_index(lists, local), shape));
    });
    const TensorSpec spec =
        sharded_tensor("t", DType::I32, shape, mesh.shape, coordinate, mesh.placements, memory.data());
    for (const LocalBox& local : spec.boxes) {
      Box box = random_box(random, local.global.size, 1);
      box.offset = plus(box.offset, local.global.offset);
      ASSERT_TRUE(holds(spec, box));
      const TensorSpec part = part_of(spec, box);
      ASSERT_EQ(fault_of(part), "");
      for_each_index(box.size, [&](const Shape& at) {
        std::int64_t offset = 0;
        for (std::size_t d = 0; d < at.size(); ++d) offset += at[d] * part.local_strides[d];
        ASSERT_EQ(static_cast<const std::int32_t*>(part.data)[offset],
                  static_cast<std::int32_t>(flat(plus(at, box.offset), shape)));
      });
    }
    Box outside = whole(shape);
    ++outside.size[0];
    EXPECT_FALSE(holds(spec, outside));
  }
}

}  // namespace
}  // namespace shardwright
