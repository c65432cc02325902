#include "planner/names/shared_inputs.h"

#include <gtest/gtest.h>

namespace shardwright {
namespace {

TEST(shared_inputs, are_those_of_one_attention_or_one_expert) {
  const std::string layer = "model.layers.3.";
  const auto key = [&](const std::string& module) { return shared_input_of(layer + module + ".weight"); };
  EXPECT_EQ(key("self_attn.q_proj"), layer + "self_attn.q_proj");
  EXPECT_EQ(key("self_attn.k_proj"), key("self_attn.q_proj"));
  EXPECT_EQ(key("self_attn.v_proj"), key("self_attn.q_proj"));
  EXPECT_EQ(key("self_attn.kv_a_proj_with_mqa"), key("self_attn.q_a_proj"));
  EXPECT_EQ(key("self_attn.o_proj"), "");
  EXPECT_EQ(key("mlp.experts.1.up_proj"), key("mlp.experts.1.gate_proj"));
  EXPECT_NE(key("mlp.experts.1.up_proj"), key("mlp.experts.2.gate_proj"));
  EXPECT_EQ(key("block_sparse_moe.experts.1.w3"), key("block_sparse_moe.experts.1.w1"));
  EXPECT_EQ(key("block_sparse_moe.experts.1.w2"), "");
  EXPECT_EQ(key("my_up_proj"), "");
  EXPECT_EQ(shared_input_of("q_proj.weight"), shared_input_of("k_proj.weight"));
  EXPECT_EQ(shared_input_of("q_proj.bias"), "");
}

}  // namespace
}  // namespace shardwright
