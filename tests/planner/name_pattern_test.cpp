#include "planner/name_pattern.h"

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
