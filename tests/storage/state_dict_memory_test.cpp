#include "storage/boxes/state_dict_memory.h"

#include <gtest/gtest.h>

#include <array>

#include "planner/error.h"

namespace shardwright {
namespace {

TEST(state_dict_memory, knows_the_global_shape_of_a_tensor_of_which_the_rank_holds_a_part) {
  std::array<float, 6> memory{};
  const Placement shard{Placement::Kind::shard, 0, 1};
  const StateDictMemory held =
      memory_of({sharded_tensor("w", DType::F32, {4, 3}, {2}, {0}, {shard}, memory.data())});
  const std::span<const SourceTensor> chunks = held.catalog.find("w");
  EXPECT_EQ(Catalog::global_shape(chunks), (Shape{4, 3}));
  ASSERT_EQ(chunks.size(), 2U);
  EXPECT_EQ(chunks[0].shape, (Shape{2, 3}));
  EXPECT_EQ(chunks[1].shape, (Shape{0, 0}));
  EXPECT_EQ(held.memory[0].data, reinterpret_cast<const std::byte*>(memory.data()));
  EXPECT_EQ(held.memory[0].strides, (Shape{3, 1}));
}

TEST(state_dict_memory, of_a_whole_tensor_is_one_chunk) {
  const StateDictMemory held =
      memory_of({whole_tensor("b", DType::BF16, {5}), whole_tensor("a", DType::F32, {})});
  ASSERT_EQ(held.catalog.tensors.size(), 2U);
  EXPECT_EQ(held.catalog.tensors[0].name, "a");
  EXPECT_EQ(held.catalog.tensors[1].shape, (Shape{5}));
}

TEST(state_dict_memory, refuses_a_name_that_comes_twice) {
  EXPECT_THROW(memory_of({whole_tensor("a", DType::F32, {1}), whole_tensor("a", DType::F32, {1})}), Error);
}

}  // namespace
}  // namespace shardwright
