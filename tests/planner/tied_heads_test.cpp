#include "planner/names/tied_heads.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace shardwright {
namespace {

using Names = std::vector<std::string>;

/// Rows of a tensor of [8, 4], on two ranks.
TensorSpec rows(const std::string& fqn, std::int64_t rank, void* data, const Shape& shape = {8, 4}) {
  return sharded_tensor(fqn, DType::BF16, shape, {2}, {rank}, {{Placement::Kind::shard, 0, 1}}, data);
}

TEST(tied_heads, are_heads_that_are_the_memory_of_an_embedding) {
  std::uint8_t memory[2][64];
  const std::pair<const char*, const char*> names[]{
      {"lm_head.weight", "model.embed_tokens.weight"},
      {"model.language_model.lm_head.weight", "model.language_model.embed_tokens.weight"},
      {"lm_head.weight", "tok_embeddings.weight"},
      {"lm_head.weight", "transformer.word_embeddings.weight"},
  };
  for (const auto& [head, embedding] : names) {
    EXPECT_EQ(tied_heads(std::vector{rows(head, 1, memory[0]), rows(embedding, 1, memory[0])}), Names{head});
    EXPECT_EQ(tied_heads(std::vector{rows(head, 1, memory[0]), rows(embedding, 1, memory[1])}), Names{});
  }
  EXPECT_EQ(tied_heads(std::vector{rows("lm_head.weight", 0, memory[0]), rows("norm.weight", 0, memory[0])}),
            Names{});
  EXPECT_EQ(tied_heads(std::vector{rows("lm_head.weight", 0, memory[0])}), Names{});
}

TEST(tied_heads, are_seen_as_the_embedding_is) {
  std::uint8_t memory[64];
  const TensorSpec embedding = rows("embed_tokens.weight", 0, memory);
  const auto tied_with = [&](const std::function<void(TensorSpec&)>& change) {
    TensorSpec head = rows("lm_head.weight", 0, memory);
    change(head);
    return !tied_heads(std::vector{head, embedding}).empty();
  };
  EXPECT_TRUE(tied_with([](TensorSpec&) {}));
  EXPECT_FALSE(tied_with([](TensorSpec& head) { head.dtype = DType::F16; }));
  EXPECT_FALSE(tied_with([](TensorSpec& head) { head.local_strides = {1, 4}; }));
  EXPECT_FALSE(tied_with([](TensorSpec& head) { head.global_shape = {9, 4}; }));
  EXPECT_FALSE(tied_with([](TensorSpec& head) { head.boxes[0].global.offset[0] = 4; }));
  EXPECT_FALSE(tied_with([](TensorSpec& head) { head.device_name = "cuda:0"; }));
  EXPECT_FALSE(tied_with([](TensorSpec& head) { head.device = DeviceKind::meta; }));
  EXPECT_FALSE(tied_with([](TensorSpec& head) { head.data = nullptr; }));
}

/// Of one row, rank 1 has none, and no memory.
TEST(tied_heads, are_so_where_a_rank_holds_nothing_of_both) {
  EXPECT_EQ(tied_heads(std::vector{rows("lm_head.weight", 1, nullptr, {1, 4}),
                                   rows("embed_tokens.weight", 1, nullptr, {1, 4})}),
            Names{"lm_head.weight"});
}

TEST(tied_heads, of_several_parts_are_the_same_in_each) {
  std::uint8_t memory[2][64];
  std::vector<TensorSpec> specs{rows("lm_head.weight", 0, memory[0]), rows("lm_head.weight", 1, memory[1]),
                                rows("embed_tokens.weight", 0, memory[0]),
                                rows("embed_tokens.weight", 1, memory[1])};
  EXPECT_EQ(take_tied_heads(specs), Names{"lm_head.weight"});
  ASSERT_EQ(specs.size(), 2U);
  EXPECT_EQ(specs[0].fqn, "embed_tokens.weight");
  specs.push_back(rows("lm_head.weight", 0, memory[0]));
  EXPECT_EQ(take_tied_heads(specs), Names{});
}

}  // namespace
}  // namespace shardwright
