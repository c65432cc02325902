#include "planner/models/general_map.h"

#include <gtest/gtest.h>

#include <tuple>

#include "planner/models/general_rows.h"
#include "planner/names/rule_pieces.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

using Text = std::tuple<std::string, std::string, std::string, bool>;

std::vector<Text> texts_of(const std::vector<ImportedRow>& rows) {
  std::vector<Text> texts;
  for (const auto& [hf, native, axes, only_read] : rows) texts.emplace_back(hf, native, axes, only_read);
  return texts;
}

std::vector<Text> texts_of(const WeightMap& map) {
  std::vector<Text> texts;
  for (const Rule& rule : map.rules)
    texts.emplace_back(rule.hf.text(), rule.native.text(), rule.axes.text(), rule.only_read);
  return texts;
}

std::vector<std::string> texts_of(const std::vector<NamePattern>& patterns) {
  std::vector<std::string> texts;
  for (const NamePattern& pattern : patterns) texts.push_back(pattern.text());
  return texts;
}

std::string number(int n) { return std::to_string(n); }

/// Of layers with as many experts each, matrices [2, 3] that are stacked.
ImportedConversion stacks(int layers, int experts) {
  ImportedConversion conversion;
  conversion.family = "some";
  conversion.layout = "transformers";
  for (int layer = 0; layer < layers; ++layer) {
    const std::string native = "m." + number(layer) + ".w";
    for (int expert = 0; expert < experts; ++expert)
      conversion.rows.push_back({"l." + number(layer) + ".e." + number(expert) + ".w", native,
                                 "o i -> " + number(expert) + "/" + number(experts) + " o i"});
    conversion.shapes[native] = {experts, 2, 3};
  }
  return conversion;
}

Catalog catalog_of(const ImportedConversion& conversion) {
  Catalog catalog;
  catalog.files = {{"file", 0}};
  for (const ImportedRow& row : conversion.rows)
    catalog.tensors.push_back({row.hf, DType::F32, {2, 3}, {0, 0}});
  return catalog;
}

TEST(general_rows, those_that_differ_in_numbers_alone_become_one) {
  std::vector<ImportedRow> rows;
  for (int layer = 0; layer < 2; ++layer) {
    for (int expert = 0; expert < 3; ++expert)
      rows.push_back({"l." + number(layer + 4) + ".e." + number(expert) + ".w", "m." + number(layer) + ".w",
                      "o i -> " + number(expert) + "/3 o i"});
  }
  EXPECT_EQ(texts_of(general_rows(rows)),
            (std::vector<Text>{{"l.{layer+4}.e.{expert}.w", "m.{layer}.w", "o i -> {expert} o i", false}}));
  rows.clear();
  for (int n = 0; n < 4; ++n)
    rows.push_back({"e." + number(n) + ".w", n < 2 ? "a.w" : "b.w", "o i -> " + number(n % 2) + "/2 o i"});
  EXPECT_EQ(texts_of(general_rows(rows)),
            (std::vector<Text>{{"e.{expert+2}.w", "b.w", "o i -> {expert} o i", false},
                               {"e.{expert}.w", "a.w", "o i -> {expert} o i", false}}));
  EXPECT_EQ(general_names({"l.3.e.0.w", "l.3.e.1.w", "l.3.e.2.w"}),
            std::vector<std::string>{"l.3.e.{shard}.w"});
}

TEST(general_map, rows_that_patterns_say_become_these) {
  ImportedConversion conversion = stacks(3, 2);
  conversion.ignored = {"x.0.y", "x.1.y"};
  conversion.unknown = {"z.0", "z.1"};
  conversion.layers = "m.";
  conversion.after_layers = {"m.2"};
  const WeightMap map = general_map(conversion, catalog_of(conversion));
  EXPECT_EQ(map.family, "some");
  EXPECT_EQ(map.layout, "transformers");
  EXPECT_EQ(texts_of(map),
            (std::vector<Text>{{"l.{layer}.e.{expert}.w", "m.{layer}.w", "o i -> {expert} o i", false}}));
  EXPECT_EQ(texts_of(map.without_place), std::vector<std::string>{"x.{shard}.y"});
  EXPECT_EQ(texts_of(map.strangers), std::vector<std::string>{"z.{shard}"});
  EXPECT_EQ(texts_of(map.layers), std::vector<std::string>{"l.{layer}.e.{expert}.w"});
  EXPECT_TRUE(map.after_layers.empty());  // no row of its own begins so
}

TEST(general_map, a_tensor_that_is_made_otherwise_keeps_its_own_rows_and_all_that_share_its_sources) {
  ImportedConversion conversion = stacks(4, 2);
  std::swap(conversion.rows[2].axes, conversion.rows[3].axes);  // layer 1 has its experts in another order
  conversion.rows.push_back({"l.1.e.0.w", "copy", ""});
  conversion.shapes["copy"] = {2, 3};
  conversion.ignored = {"x.0.y", "x.1.y"};
  Catalog catalog = catalog_of(conversion);
  catalog.tensors.pop_back();  // "copy" has a source that is there
  const WeightMap map = general_map(conversion, catalog);
  EXPECT_EQ(texts_of(map),
            (std::vector<Text>{{"l.1.e.0.w", "m.1.w", "o i -> 1/2 o i", false},
                               {"l.1.e.1.w", "m.1.w", "o i -> 0/2 o i", false},
                               {"l.1.e.0.w", "copy", "", false},
                               {"l.{layer}.e.{expert}.w", "m.{layer}.w", "o i -> {expert} o i", false}}));
  EXPECT_EQ(texts_of(map.without_place), conversion.ignored) << "names are as narrow as rows, then";
  EXPECT_EQ(said_otherwise(map, catalog, conversion.rows, conversion.shapes), std::vector<std::string>());
}

TEST(general_map, what_nobody_knows_does_not_count_as_one_of_those_without_a_place) {
  ImportedConversion conversion = stacks(3, 2);
  conversion.ignored = {"l.61.extra.w", "l.62.extra.w"};
  conversion.unknown = {"l.1.extra.w"};
  const WeightMap map = general_map(conversion, catalog_of(conversion));
  EXPECT_EQ(texts_of(map.without_place), conversion.ignored);
  EXPECT_EQ(texts_of(map.strangers), conversion.unknown);
  EXPECT_EQ(map.rules.size(), 1U) << "rows stay general";
}

TEST(general_map, what_no_rule_says_is_named) {
  ImportedConversion conversion = stacks(2, 2);
  conversion.shapes["m.1.w"] = {2, 5, 3};  // which its sources do not make
  expect_error(ErrorKind::mismatch, {"m.1.w: the rules made of transformers' mapping", "report it"},
               [&] { general_map(conversion, catalog_of(conversion)); });
}

}  // namespace
}  // namespace shardwright
