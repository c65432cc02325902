#include "planner/handover/refit_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "planner/error.h"
#include "planner/handover/engine_transfers.h"

namespace shardwright {
namespace {

/// Tensors that are stored whole, sorted by name.
Catalog catalog_of(const std::vector<std::pair<std::string, Shape>>& tensors) {
  Catalog catalog;
  for (const auto& [name, shape] : tensors)
    catalog.tensors.push_back({name, DType::BF16, shape, Shape(shape.size(), 0)});
  return catalog;
}

HandedLayers one_layer(const Catalog& catalog) {
  return {{"layer"}, std::vector<std::uint32_t>(catalog.tensors.size(), 0)};
}

/// Cuts a box at random places along each dimension, into parts that fill it.
std::vector<Box> random_parts(const Box& box, std::size_t dimension, std::mt19937& random) {
  if (dimension == box.size.size()) return {box};
  std::vector<Box> parts;
  for (std::int64_t done = 0; done < box.size[dimension];) {
    Box part = box;
    part.offset[dimension] += done;
    part.size[dimension] = std::uniform_int_distribution<std::int64_t>(1, box.size[dimension] - done)(random);
    done += part.size[dimension];
    for (Box& inner : random_parts(part, dimension + 1, random)) parts.push_back(std::move(inner));
  }
  return parts;
}

/// How often each element of a tensor is in one of the boxes, counted one by one.
std::vector<int> counts_of(const Shape& shape, const std::vector<Box>& boxes) {
  std::vector<int> counts(static_cast<std::size_t>(volume(shape)), 0);
  for (const Box& box : boxes) {
    Shape index(shape.size(), 0);
    do {
      Shape at = box.offset;
      for (std::size_t d = 0; d < at.size(); ++d) at[d] += index[d];
      ++counts[static_cast<std::size_t>(elements_to(at, contiguous_strides(shape)))];
    } while (next_index(index, box.size));
  }
  return counts;
}

TEST(RefitPlan, HandsEachElementOfEachNeedOverOnce) {
  std::mt19937 random(7);
  const Catalog catalog = catalog_of({{"a", {9, 14}}, {"b", {4, 3, 5}}});
  for (int turn = 0; turn < 50; ++turn) {
    std::vector<std::vector<ExportedBox>> given(3);
    std::vector<ExportedBox> needs;
    for (std::uint32_t t = 0; t < 2; ++t) {
      const Box all = whole(catalog.tensors[t].shape);
      for (Box& box : random_parts(all, 0, random))
        given[random() % given.size()].push_back({t, {}, std::move(box)});
      for (Box& box : random_parts(all, 0, random)) needs.push_back({t, {}, std::move(box)});
    }
    std::vector<HandedList> receives;
    std::map<std::uint32_t, std::vector<Box>> of_tensor;
    for (int rank = 0; rank < 3; ++rank) {
      const GivenBoxes boxes(given[static_cast<std::size_t>(rank)], catalog);
      receives.push_back({rank, handed_boxes(boxes, needs, catalog, one_layer(catalog), 32)});
      for (const HandedBox& handed : receives.back().boxes)
        of_tensor[handed.part.tensor].push_back(handed.part.box);
    }
    EXPECT_NO_THROW(expect_all(needs, receives, catalog));
    for (std::uint32_t t = 0; t < 2; ++t) {
      const std::vector<int> counts = counts_of(catalog.tensors[t].shape, of_tensor[t]);
      EXPECT_TRUE(std::all_of(counts.begin(), counts.end(), [](int count) { return count == 1; }));
    }
    const auto has_boxes = std::find_if(receives.begin(), receives.end(),
                                        [](const HandedList& list) { return !list.boxes.empty(); });
    has_boxes->boxes.pop_back();
    EXPECT_THROW(expect_all(needs, receives, catalog), Error);
  }
}

TEST(RefitPlan, MeetsBoxesOfTheTrainersViews) {
  const Catalog catalog = catalog_of({{"gate_up", {6, 4}}});  // rows: gate, up, gate, up, ...
  const GivenBoxes gates({{0, {3, 2, 4}, {{0, 0, 0}, {3, 1, 4}}}}, catalog);
  const GivenBoxes ups({{0, {3, 2, 4}, {{0, 1, 0}, {3, 1, 4}}}}, catalog);
  const std::vector<ExportedBox> needs{{0, {}, {{1, 0}, {4, 4}}}};
  std::vector<HandedList> receives;
  receives.push_back({0, handed_boxes(gates, needs, catalog, one_layer(catalog), 1024)});
  receives.push_back({1, handed_boxes(ups, needs, catalog, one_layer(catalog), 1024)});
  std::int64_t elements = 0;
  for (const HandedList& list : receives) {
    for (const HandedBox& handed : list.boxes) elements += volume(handed.part.box.size);
  }
  EXPECT_EQ(elements, 16);
  EXPECT_NO_THROW(expect_all(needs, receives, catalog));
}

TEST(RefitPlan, GoesInMessagesOfOneLayerAndSoManyBytes) {
  const Catalog catalog = catalog_of({{"a", {64}}, {"b", {64}}, {"c", {64}}});
  const HandedLayers layers{{"first", "second"}, {0, 0, 1}};
  const GivenBoxes given({{0, {}, {{0}, {64}}}, {1, {}, {{0}, {64}}}, {2, {}, {{0}, {64}}}}, catalog);
  const std::vector<ExportedBox> needs = given.boxes;
  const std::vector<HandedBox> handed = handed_boxes(given, needs, catalog, layers, 256);
  const std::vector<Message> messages = messages_of(handed, catalog, layers, 256);
  ASSERT_EQ(messages.size(), 2U);
  EXPECT_EQ(messages[0].count, 2U);
  EXPECT_EQ(messages[0].bytes, 256U);
  EXPECT_EQ(messages[1].layer, 1U);
}

TEST(RefitPlan, ComesBackFromItsWireForm) {
  const Catalog catalog = catalog_of({{"a", {6, 4}}, {"b", {8}}});
  const RefitPlan plan{{{2, {{0, {0, {3, 2, 4}, {{0, 1, 0}, {3, 1, 4}}}}, {5, {1, {}, {{2}, {3}}}}}}},
                       {{0, {}}, {3, {{1, {1, {}, {{0}, {8}}}}}}},
                       4096};
  const std::string bytes = encode(plan);
  EXPECT_EQ(decode_refit_plan(bytes, catalog), plan);
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_THROW(decode_refit_plan(bytes.substr(0, size), catalog), Error);
  EXPECT_THROW(decode_refit_plan(bytes, catalog_of({{"a", {6, 4}}})), Error);
  EXPECT_THROW(decode_refit_plan(bytes, catalog_of({{"a", {6, 4}}, {"b", {4}}})), Error);
}

TEST(EngineTensors, AreListedByNameWhereTheyDoNotFit) {
  const Catalog catalog = catalog_of({{"k.weight", {4, 6}}, {"q.weight", {8, 6}}});
  const auto told = [&](const EngineTensor& tensor) -> std::string {
    try {
      transfers_into({tensor}, catalog, "the export");
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  };
  const EnginePart q{"q.weight", {{4, 0}, {4, 6}}, {0, 0}, {0, 1}};
  const EnginePart k{"k.weight", {{2, 0}, {2, 6}}, {4, 0}, {0, 1}};
  EXPECT_EQ(told({"qk", DType::BF16, {6, 6}, {q, k}}), "");
  EXPECT_NE(told({"qk", DType::BF16, {7, 6}, {q, k}}).find("qk: its parts do not write each element once"),
            std::string::npos);
  EXPECT_NE(told({"qk", DType::BF16, {5, 6}, {q, k}}).find("does not lie inside of qk [5, 6]"),
            std::string::npos);
  EXPECT_NE(
      told({"qk", DType::F32, {6, 6}, {q, k}}).find("expected F32, as the engine's tensor is, found BF16"),
      std::string::npos);
  EXPECT_NE(told({"v", DType::BF16, {1}, {{"v.weight"}}}).find("v.weight: nobody can supply it"),
            std::string::npos);
  EXPECT_EQ(told({"k", DType::BF16, {6, 4}, {{"k.weight", {}, {}, {1, 0}}}}), "");
}

}  // namespace
}  // namespace shardwright
