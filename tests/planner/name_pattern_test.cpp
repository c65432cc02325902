#include "planner/names/name_pattern.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace shardwright {
namespace {

TEST(name_pattern, match_says_what_the_variables_stand_for_and_fill_puts_it_back) {
  const NamePattern pattern("model.layers.{layer}.experts.{expert}.w1.{*}");
  const auto captures = pattern.match("model.layers.12.experts.0.w1.weight.x");
  ASSERT_TRUE(captures);
  EXPECT_EQ(captures->layer, 12);
  EXPECT_EQ(captures->expert, 0);
  EXPECT_EQ(captures->rest, "weight.x");
  EXPECT_EQ(pattern.fill(*captures), "model.layers.12.experts.0.w1.weight.x");
  EXPECT_TRUE(pattern.has_expert());
  EXPECT_FALSE(NamePattern("model.layers.{layer}.x").has_expert());
}

TEST(name_pattern, without_variables_only_the_very_name_fits) {
  const NamePattern pattern("lm_head.weight");
  EXPECT_TRUE(pattern.match("lm_head.weight"));
  for (const char* name : {"", "lm_head.weigh", "lm_head.weight.", "lm_head.weights", "xlm_head.weight"})
    EXPECT_FALSE(pattern.match(name)) << name;
}

TEST(name_pattern, a_number_is_decimal_without_leading_zeros_or_sign) {
  const NamePattern pattern("a.{layer}.b");
  for (const char* name : {"a.0.b", "a.7.b", "a.10.b", "a.9223372036854775807.b"}) {
    const auto captures = pattern.match(name);
    ASSERT_TRUE(captures) << name;
    EXPECT_EQ(pattern.fill(*captures), name);
  }
  for (const char* name : {"a..b", "a.00.b", "a.07.b", "a.-1.b", "a.+1.b", "a. 1.b", "a.1x.b", "a.0x1.b",
                           "a.", "a.9223372036854775808.b", "a.1", "a.1.", "a.-0.b"})
    EXPECT_FALSE(pattern.match(name)) << name;
}

TEST(name_pattern, a_layer_may_count_from_elsewhere) {
  const NamePattern more("layers.{layer+61}.x");
  EXPECT_EQ(more.match("layers.61.x")->layer, 0);
  EXPECT_EQ(more.match("layers.64.x")->layer, 3);
  EXPECT_FALSE(more.match("layers.60.x"));
  EXPECT_EQ(more.fill(*NamePattern("mtp.{layer}.x").match("mtp.2.x")), "layers.63.x");
  const NamePattern less("blocks.{layer-1}.x");
  EXPECT_EQ(less.match("blocks.0.x")->layer, 1);
  EXPECT_EQ(less.fill(*less.match("blocks.9223372036854775806.x")), "blocks.9223372036854775806.x");
  EXPECT_FALSE(less.match("blocks.9223372036854775807.x"));
  for (const char* text :
       {"{layer+}", "{layer+x}", "{layer*2}", "{layer+1", "{layer+01}", "{rest+1}", "{layer+-1}"})
    EXPECT_THROW(NamePattern{text}, std::invalid_argument) << text;
}

TEST(name_pattern, an_expert_or_shard_without_a_number_stays_a_variable) {
  const NamePattern pattern("layers.{layer}.experts.{expert}.w{shard}");
  Captures captures;
  captures.layer = 3;
  EXPECT_EQ(pattern.fill(captures), "layers.3.experts.{expert}.w{shard}");
  captures.expert = 0;
  EXPECT_EQ(pattern.fill(captures), "layers.3.experts.0.w{shard}");
}

TEST(name_pattern, experts_and_shards_may_count_from_elsewhere_too) {
  const NamePattern pattern("e.{expert+4}.s.{shard-1}");
  const auto captures = pattern.match("e.6.s.2");
  ASSERT_TRUE(captures);
  EXPECT_EQ(captures->expert, 2);
  EXPECT_EQ(captures->shard, 3);
  EXPECT_EQ(pattern.fill(*captures), "e.6.s.2");
  EXPECT_FALSE(pattern.match("e.3.s.2"));
}

TEST(name_pattern, shards_and_experts_are_numbers_apart) {
  const auto captures = NamePattern("e.{expert}.s.{shard}").match("e.4.s.2");
  ASSERT_TRUE(captures);
  EXPECT_EQ(captures->expert, 4);
  EXPECT_EQ(captures->shard, 2);
  EXPECT_TRUE(NamePattern("s.{shard}").has_shard());
  EXPECT_FALSE(NamePattern("s.{expert}").has_shard());
}

TEST(name_pattern, a_number_may_end_the_name) {
  const NamePattern pattern("a.{layer}");
  EXPECT_EQ(pattern.match("a.30")->layer, 30);
  EXPECT_FALSE(pattern.match("a."));
  EXPECT_FALSE(pattern.match("a.3."));
}

TEST(name_pattern, the_rest_is_at_least_one_character) {
  const NamePattern pattern("vision.{*}");
  EXPECT_FALSE(pattern.match("vision."));
  EXPECT_EQ(pattern.match("vision.x")->rest, "x");
  EXPECT_EQ(pattern.match("vision.layers.3.{layer}")->rest, "layers.3.{layer}");
}

TEST(name_pattern, unknown_variables_and_a_rest_before_the_end_are_refused) {
  for (const char* text : {"a.{block}.b", "a.{}.b", "a.{*}.b", "a.{layer", "{", "a.{Layer}", "{*}{*}"})
    EXPECT_THROW(NamePattern{text}, std::invalid_argument) << text;
}

}  // namespace
}  // namespace shardwright
