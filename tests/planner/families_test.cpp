#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <utility>

#include "planner/models/known_models.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {
namespace {

TEST(families, each_name_and_each_model_type_is_one_familys) {
  std::set<std::string_view> families;
  std::set<std::string_view> model_types;
  for (const Model& model : models()) {
    EXPECT_TRUE(families.insert(model.family).second) << model.family;
    for (const std::string_view type : model.model_types)
      EXPECT_TRUE(model_types.insert(type).second) << type;
    EXPECT_FALSE(model.layouts.empty()) << model.family;
    EXPECT_FALSE(model.model_types.empty()) << model.family;
  }
  EXPECT_GE(families.size(), 30U);
}

/// A tensor that several rows make up is made up of parts: a row whose HF tensor already is all of it would
/// be written over by the next.
TEST(families, no_row_of_a_table_is_in_the_way_of_another) {
  for (const Model& model : models()) {
    for (const std::string_view layout : model.layouts) {
      std::map<std::pair<std::string, int>, int> rows;
      std::set<std::pair<std::string, int>> whole;
      const WeightMap map = model.weight_map(layout, {});
      for (const Rule& rule : map.rules) {
        const std::pair native(rule.native.text(), rule.alternative);
        ++rows[native];
        if (rule.axes.is_identity()) whole.insert(native);
      }
      for (const auto& [native, count] : rows)
        EXPECT_TRUE(count == 1 || !whole.contains(native))
            << model.family << " " << layout << " " << native.first;
    }
  }
}

TEST(families, no_layout_is_both_known_and_refused) {
  for (const Model& model : models()) {
    for (const auto& [layout, reason] : model.refused) {
      for (const std::string_view known : model.layouts) EXPECT_NE(known, layout) << model.family;
      EXPECT_FALSE(reason.empty());
      EXPECT_THROW(weight_map_for({}, model.family, layout), std::exception);
    }
  }
}

}  // namespace
}  // namespace shardwright
