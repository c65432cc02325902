#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "planner/error.h"
#include "planner/handover/refit_plan.h"
#include "tests/planner/rounds.h"

namespace shardwright {
namespace {

constexpr int layers = 100;

/// Layers that are alike: a matrix and its scales, of which the files have so many columns.
Catalog catalog_of_layers(std::int64_t columns) {
  Catalog catalog;
  for (int layer = 0; layer < layers; ++layer) {
    const std::string name = "layers." + std::to_string(1000 + layer) + ".weight";
    catalog.tensors.push_back({name, DType::BF16, {6, columns}, {0, 0}});
    catalog.tensors.push_back({name + "_scale", DType::U8, {6}, {0}});
  }
  return catalog;
}

/// To each of so many ranks the same of each layer; the second rank sees a matrix in a view.
RefitPlan plan_of_layers(int ranks, std::int64_t columns) {
  RefitPlan plan;
  plan.message_bytes = 4096;
  for (int rank = 0; rank < ranks; ++rank) {
    HandedList list{rank, {}};
    for (std::uint32_t layer = 0; layer < layers; ++layer) {
      const ExportedBox box = rank == 1
                                  ? ExportedBox{2 * layer, {3, 2, columns}, {{0, 1, 0}, {3, 1, columns}}}
                                  : ExportedBox{2 * layer, {}, {{rank % 6, 0}, {1, columns}}};
      list.boxes.push_back({2 * layer, box});
      list.boxes.push_back({2 * layer + 1, {2 * layer + 1, {}, {{rank % 6}, {1}}}});
    }
    (rank % 2 == 0 ? plan.sends : plan.receives).push_back(std::move(list));
  }
  return plan;
}

std::vector<ExportedBox> needs_of_layers(std::int64_t columns) {
  std::vector<ExportedBox> needs;
  for (const HandedList& list : plan_of_layers(2, columns).receives) {
    for (const HandedBox& handed : list.boxes) needs.push_back(handed.part);
  }
  return needs;
}

/// A byte changed, left out, doubled, or the rest cut off.
std::string damaged(std::string bytes, std::mt19937& random) {
  const auto at = static_cast<std::ptrdiff_t>(random() % bytes.size());
  switch (random() % 4) {
    case 0:
      bytes[static_cast<std::size_t>(at)] = static_cast<char>(random());
      break;
    case 1:
      bytes.erase(bytes.begin() + at);
      break;
    case 2:
      bytes.insert(bytes.begin() + at, static_cast<char>(random()));
      break;
    default:
      bytes.resize(static_cast<std::size_t>(at));
  }
  return bytes;
}

bool lies_in_its_tensor(const ExportedBox& part, const Catalog& catalog) {
  if (part.tensor >= catalog.tensors.size() || is_empty(part.box)) return false;
  const Shape& shape = catalog.tensors[part.tensor].shape;
  return lies_inside(part.box, part.view.empty() ? shape : part.view) &&
         (part.view.empty() || volume(part.view) == volume(shape));
}

std::string refusal_of(const std::function<void()>& decode) {
  try {
    decode();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::malformed);
    return error.what();
  }
  return "";
}

TEST(refit_wire, plans_and_needs_come_back) {
  const Catalog catalog = catalog_of_layers(4);
  const RefitPlan plan = plan_of_layers(5, 4);
  EXPECT_EQ(decode_refit_plan(encode(plan), catalog), plan);
  EXPECT_EQ(decode_needs(encode_needs(needs_of_layers(4)), catalog), needs_of_layers(4));
}

TEST(refit_wire, needs_of_what_a_rank_does_not_give_keep_their_numbers_alone) {
  const Catalog catalog = catalog_of_layers(4);
  const std::vector<ExportedBox> needs = needs_of_layers(4);
  const GivenBoxes given({{needs[1].tensor, {}, whole(catalog.tensors[needs[1].tensor].shape)}}, catalog);
  const std::vector<ExportedBox> decoded = decode_needs(encode_needs(needs), catalog, &given);
  ASSERT_EQ(decoded.size(), needs.size());
  for (std::size_t n = 0; n < needs.size(); ++n) {
    const bool is_given = needs[n].tensor == needs[1].tensor;
    EXPECT_EQ(decoded[n], is_given ? needs[n] : (ExportedBox{needs[n].tensor, {}, {}}));
  }
}

TEST(refit_wire, boxes_of_alike_layers_take_a_byte_or_two_each) {
  constexpr int ranks = 50;
  EXPECT_LT(encode(plan_of_layers(ranks, 4)).size(), 2 * 2 * layers * ranks);
}

TEST(refit_wire, damaged_bytes_are_refused_or_mean_boxes_of_the_tensors) {
  const Catalog catalog = catalog_of_layers(4);
  const std::string plan = encode(plan_of_layers(5, 4));
  const std::string needs = encode_needs(needs_of_layers(4));
  std::mt19937 random(5);
  int taken = 0;
  for (int turn = 0; turn < rounds(20000); ++turn) {
    refusal_of([&] {
      const RefitPlan decoded = decode_refit_plan(damaged(plan, random), catalog);
      for (const std::vector<HandedList>* lists : {&decoded.sends, &decoded.receives}) {
        for (const HandedList& list : *lists) {
          for (const HandedBox& handed : list.boxes) ASSERT_TRUE(lies_in_its_tensor(handed.part, catalog));
        }
      }
      EXPECT_EQ(decode_refit_plan(encode(decoded), catalog), decoded);
      ++taken;
    });
    refusal_of([&] {
      const std::vector<ExportedBox> decoded = decode_needs(damaged(needs, random), catalog);
      for (const ExportedBox& need : decoded) ASSERT_TRUE(lies_in_its_tensor(need, catalog));
      EXPECT_EQ(decode_needs(encode_needs(decoded), catalog), decoded);
      ++taken;
    });
  }
  EXPECT_GT(taken, rounds(100)) << "the damage is too wild to reach far";
}

TEST(refit_wire, a_box_outside_of_its_tensor_is_named) {
  const Catalog narrower = catalog_of_layers(3);
  const std::string text = refusal_of([&] { decode_refit_plan(encode(plan_of_layers(1, 4)), narrower); });
  EXPECT_NE(text.find("layers.1000.weight: expected a box of [6, 3], found one of [1, 4] at [0, 0]"),
            std::string::npos)
      << text;
  const std::string of_view = refusal_of([&] { decode_needs(encode_needs(needs_of_layers(4)), narrower); });
  EXPECT_NE(of_view.find("layers.1000.weight: [3, 2, 4] is no view of its shape [6, 3]"), std::string::npos)
      << of_view;
}

TEST(refit_wire, an_earlier_release_is_told_of) {
  std::string bytes = encode(plan_of_layers(1, 4));
  bytes[1] = 1;  // version, the first field
  EXPECT_NE(refusal_of([&] { decode_refit_plan(bytes, catalog_of_layers(4)); }).find("version"),
            std::string::npos);
}

}  // namespace
}  // namespace shardwright
