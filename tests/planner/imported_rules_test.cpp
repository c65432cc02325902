#include "planner/models/imported_rules.h"

#include <gtest/gtest.h>

#include "planner/load/load_plan.h"
#include "planner/models/known_models.h"
#include "planner/names/rule_pieces.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

Catalog catalog_of(const std::vector<std::pair<std::string, Shape>>& tensors) {
  Catalog catalog;
  catalog.files = {{"file", 0}};
  for (const auto& [name, shape] : tensors)
    catalog.tensors.push_back({name, DType::F32, shape, Shape(shape.size(), 0)});
  return catalog;
}

ImportedRules rules_of(std::vector<ImportedRow> rows) {
  ImportedRules rules;
  rules.family = "some";
  rules.layout = "transformers";
  rules.rows = std::move(rows);
  return rules;
}

/// Two experts of a layer, gates and ups apart, and what they are made into.
const std::vector<std::pair<std::string, Shape>> experts_files = {
    {"l.0.e.0.down", {3, 2}}, {"l.0.e.0.gate", {2, 3}}, {"l.0.e.0.up", {2, 3}},
    {"l.0.e.1.down", {3, 2}}, {"l.0.e.1.gate", {2, 3}}, {"l.0.e.1.up", {2, 3}},
};
const std::map<std::string, Shape> experts_shapes = {{"l.0.down", {2, 3, 2}}, {"l.0.gate_up", {2, 4, 3}}};
const std::vector<ImportedRow> experts_rows = {
    {"l.0.e.0.down", "l.0.down", "o i -> 0/2 o i"},
    {"l.0.e.1.down", "l.0.down", "o i -> 1/2 o i"},
    {"l.0.e.0.gate", "l.0.gate_up", "o i -> 0/2 (0/2 o) i"},
    {"l.0.e.0.up", "l.0.gate_up", "o i -> 0/2 (1/2 o) i"},
    {"l.0.e.1.gate", "l.0.gate_up", "o i -> 1/2 (0/2 o) i"},
    {"l.0.e.1.up", "l.0.gate_up", "o i -> 1/2 (1/2 o) i"},
};
const std::vector<ImportedRow> experts_patterns = {
    {"l.{layer}.e.{expert}.down", "l.{layer}.down", "o i -> {expert} o i"},
    {"l.{layer}.e.{expert}.gate", "l.{layer}.gate_up", "o i -> {expert} (0/2 o) i"},
    {"l.{layer}.e.{expert}.up", "l.{layer}.gate_up", "o i -> {expert} (1/2 o) i"},
};

std::vector<std::string> otherwise(const std::vector<ImportedRow>& patterns,
                                   const std::vector<ImportedRow>& rows = experts_rows) {
  return said_otherwise(weight_map_of(rules_of(patterns)), catalog_of(experts_files), rows, experts_shapes);
}

TEST(imported_rules, patterns_and_single_rows_that_say_the_same_are_told_so) {
  EXPECT_EQ(otherwise(experts_patterns), std::vector<std::string>());
  EXPECT_EQ(otherwise(experts_rows), std::vector<std::string>());
}

TEST(imported_rules, a_pattern_that_says_anything_else_is_told_by_the_tensor_it_says_it_of) {
  const std::vector<std::string> gate_up = {"l.0.gate_up"};
  std::vector<ImportedRow> patterns = experts_patterns;
  std::swap(patterns[1].axes, patterns[2].axes);  // ups first
  EXPECT_EQ(otherwise(patterns), gate_up);
  patterns = experts_patterns;
  patterns.pop_back();  // no ups
  EXPECT_EQ(otherwise(patterns), gate_up);
  patterns = experts_patterns;
  patterns[0].axes = "o i -> {expert} i o";  // transposed
  EXPECT_EQ(otherwise(patterns), std::vector<std::string>{"l.0.down"});
  patterns = experts_patterns;
  patterns[0].only_read = true;
  EXPECT_EQ(otherwise(patterns), std::vector<std::string>{"l.0.down"});
  patterns = experts_patterns;
  patterns.push_back(
      {"l.{layer}.e.{expert}.down", "l.{layer}.other", "o i -> {expert} o i"});  // elsewhere, too
  EXPECT_EQ(otherwise(patterns), std::vector<std::string>{"l.0.down"});
}

TEST(imported_rules, a_row_is_refused_that_names_what_the_other_side_has_not) {
  const std::vector<ImportedRow> bad = {
      {"a.{layer}", "a", ""},
      {"a", "a.{layer}", ""},
      {"a.{expert}", "a", ""},
      {"a.{expert}", "a.{expert}", "o i -> {expert} o i"},
      {"a", "a", "o i -> {expert} o i"},
      {"a.{shard}", "a", "o i -> {expert} o i"},
      {"a.{*}", "a", ""},
      {"a.{what}", "a", ""},
      {"a", "a", "o i -> o"},
      {"a", "a", "nothing"},
  };
  for (const ImportedRow& row : bad) {
    expect_error(ErrorKind::argument, {}, [&] { weight_map_of(rules_of({row})); });
  }
  ImportedRules rules = rules_of({});
  rules.strangers = {"{*}.x"};
  expect_error(ErrorKind::argument, {"{*}"}, [&] { weight_map_of(rules); });
}

TEST(imported_rules, a_stranger_is_unknown_though_a_pattern_fits_it) {
  ImportedRules rules = rules_of({{"l.{layer}.x", "n.{layer}.x", ""}});
  rules.strangers = {"l.1.{*}"};
  const WeightMap map = weight_map_of(rules);
  EXPECT_EQ(native_matches_of(map, "l.0.x").size(), 1U);
  EXPECT_TRUE(native_matches_of(map, "l.1.x").empty());
  const Catalog catalog = catalog_of({{"l.0.x", {2}}, {"l.1.x", {2}}});
  const std::vector<TensorSpec> specs = {whole_tensor("n.0.x", DType::F32, {2})};
  expect_error(ErrorKind::mismatch, {"l.1.x", "no rule"}, [&] { plan_load(specs, catalog, map); });
}

TEST(imported_rules, which_families_have_tables_is_told_by_name_and_by_config) {
  Catalog catalog;
  EXPECT_TRUE(has_table(catalog, "qwen3_moe", "transformers"));
  EXPECT_FALSE(has_table(catalog, "qwen3_moe", "no layout"));
  EXPECT_FALSE(has_table(catalog, "no family", "transformers"));
  EXPECT_TRUE(has_table(catalog, "no family", "huggingface"));
  EXPECT_FALSE(has_table(catalog, "auto", "transformers"));
  catalog.config = R"({"model_type": "qwen3_moe"})";
  EXPECT_TRUE(has_table(catalog, "auto", "transformers"));
  catalog.config = R"({"model_type": "unheard_of"})";
  EXPECT_FALSE(has_table(catalog, "auto", "transformers"));
}

}  // namespace
}  // namespace shardwright
