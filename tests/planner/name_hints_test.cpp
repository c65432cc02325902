#include "planner/names/name_hints.h"

#include <gtest/gtest.h>

namespace shardwright {
namespace {

using Names = std::vector<std::string>;

/// Expects one hint that begins so and holds that.
void expect_hint(const Names& missing, const Names& available, const std::string& begin,
                 const std::string& advice) {
  const Names hints = hints_at_names(missing, available);
  ASSERT_EQ(hints.size(), 1U) << begin;
  EXPECT_TRUE(hints.front().starts_with(begin)) << hints.front();
  EXPECT_NE(hints.front().find(advice), std::string::npos) << hints.front();
}

TEST(NameHints, TellAWrapperOfTheStateDict) {
  expect_hint({"a._orig_mod.w", "_orig_mod.b", "c"}, {"a.w", "b"},
              "2 names of the state dict have the prefix _orig_mod. of torch.compile, ",
              "(wrapper._orig_mod.state_dict())");
}

TEST(NameHints, TellAWrapperOfTheCheckpoint) {
  expect_hint({"a.w"}, {"module.a.w", "module.b"},
              "1 names are in the checkpoint with the prefix module. of DistributedDataParallel, ",
              "{\"module.\" + name: value");
}

TEST(NameHints, TellSeveralWrappersAtOnce) {
  expect_hint({"module._orig_mod.w"}, {"_fsdp_wrapped_module.w"}, "1 names fit but for prefixes of wrappers",
              "innermost module on both sides");
}

TEST(NameHints, TellTheKeyThatHoldsTheOther) {
  expect_hint({"app.model.w", "app.model.b"}, {"w", "b"},
              "2 names are in the checkpoint without \"app.model.\": ", "pass what is under that key");
  expect_hint({"w", "b"}, {"app.model.w", "other"}, "1 names are in the checkpoint under \"app.model.\": ",
              "pass {\"app\": {\"model\": state_dict}}");
  EXPECT_EQ(hints_at_names({"a.b.c.d.w"}, {"w"}), Names()) << "four keys are no usual nesting";
}

TEST(NameHints, SayNothingWhereNothingWouldHelp) {
  EXPECT_EQ(hints_at_names({}, {"a"}), Names());
  EXPECT_EQ(hints_at_names({"a"}, {}), Names());
  EXPECT_EQ(hints_at_names({"a.w"}, {"b.v"}), Names());
}

}  // namespace
}  // namespace shardwright
