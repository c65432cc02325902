#include "planner/save/dealing.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>

#include "planner/save/global_save_plan.h"
#include "tests/planner/random_layouts.h"
#include "tests/planner/random_saves.h"
#include "tests/planner/rounds.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

struct Tensor {
  std::string fqn;
  Shape shape;
};

struct HeldBoxes {
  Tensor tensor;
  std::vector<Box> boxes;
};
using Holdings = std::vector<HeldBoxes>;

using Cut = std::function<std::size_t(const SavedValue&, const Box&)>;
std::size_t along_the_first(const SavedValue&, const Box&) { return 0; }

std::vector<RankState> states_of(const std::vector<Holdings>& holdings) {
  std::vector<RankState> states;
  for (std::size_t rank = 0; rank < holdings.size(); ++rank) {
    SavedValues values;
    SavedItems items;
    for (const HeldBoxes& held : holdings[rank]) {
      values.values.push_back({held.tensor.fqn,
                               SavedValue::Kind::shards,
                               {"bfloat16", "strided", 2, 0},
                               held.tensor.shape,
                               {},
                               {}});
      for (const Box& box : held.boxes)
        items.add(static_cast<std::uint32_t>(values.values.size() - 1), box.offset, box.size);
    }
    states.push_back({static_cast<std::int64_t>(rank), {}, {}});
    add_part(states.back(), values, items);
  }
  return states;
}

GlobalSavePlan plan_in_parts(const std::vector<RankState>& states, const Cut& cut) {
  ValuesByHash known;
  for (const RankState& state : states) learn_values(state, known);
  return plan_save(states, known, [&](const SavedValues&) {
    return Dealing{[](const SavedValue&) { return 2.0; }, cut};
  });
}

/// What each rank writes, by way of the wire.
std::vector<std::vector<WrittenBox>> deal_out(const std::vector<RankState>& states, const Cut& cut) {
  const GlobalSavePlan plan = plan_in_parts(states, cut);
  std::vector<std::vector<WrittenBox>> shares;
  for (std::size_t r = 0; r < states.size(); ++r) {
    const std::string bytes = encode(RankWrites{plan.left_to_others[r], plan.cuts[r]});
    shares.push_back(boxes_to_write(states[r], read_writes(bytes, states[r])));
  }
  return shares;
}

/// Tensors in boxes that cover them, each box held by one rank or more.
std::vector<Holdings> random_holdings(Random& random, std::int64_t ranks, std::int64_t largest) {
  std::vector<Holdings> holdings(static_cast<std::size_t>(ranks));
  for (std::int64_t t = random.between(1, 5); t > 0; --t) {
    const Tensor tensor{"t" + std::to_string(t), random_shape(random, random.between(0, 3), 1, largest)};
    std::vector<HeldBoxes> held(holdings.size(), {tensor, {}});
    for (const Box& box : random_tiling(random, whole(tensor.shape), random.between(0, 5))) {
      const std::int64_t always = random.between(0, ranks - 1);
      const std::int64_t rarity = random.between(1, 4);
      for (std::int64_t rank = 0; rank < ranks; ++rank) {
        if (rank == always || random.once_in(rarity))
          held[static_cast<std::size_t>(rank)].boxes.push_back(box);
      }
    }
    for (std::size_t rank = 0; rank < holdings.size(); ++rank) {
      random.shuffle(held[rank].boxes);
      if (!held[rank].boxes.empty() || random.once_in(2)) holdings[rank].push_back(held[rank]);
    }
  }
  return holdings;
}

double bytes_of_share(const std::vector<WrittenBox>& share) {
  double bytes = 0;
  for (const WrittenBox& written : share) bytes += 2 * static_cast<double>(volume(written.box.size));
  return bytes;
}

double busiest_by_mean(const std::vector<std::vector<WrittenBox>>& shares) {
  double most = 0;
  double sum = 0;
  for (const std::vector<WrittenBox>& share : shares) {
    most = std::max(most, bytes_of_share(share));
    sum += bytes_of_share(share);
  }
  return most * static_cast<double>(shares.size()) / sum;
}

/// Each element of each value is written once, by ranks that hold it.
void expect_written_once(const std::vector<RankState>& states, const Cut& cut) {
  const GlobalSavePlan plan = plan_in_parts(states, cut);
  const auto shares = deal_out(states, cut);
  std::map<std::string, std::vector<int>> written;
  std::map<std::string, Shape> shapes;
  for (const SavedValue& value : plan.metadata.values.values) {
    if (value.kind == SavedValue::Kind::object) continue;
    shapes[value.fqn] = value.shape;
    written[value.fqn].resize(static_cast<std::size_t>(volume(value.shape)));
  }
  for (std::size_t r = 0; r < shares.size(); ++r) {
    const std::vector<WrittenBox> held =
        boxes_to_write(states[r], {LeftToOthers(states[r].holdings.size()), {}});
    double bytes = 0;
    for (const WrittenBox& one : shares[r]) {
      if (!shapes.contains(one.fqn)) continue;
      bytes += 2 * static_cast<double>(volume(one.box.size));
      ASSERT_TRUE(std::any_of(held.begin(), held.end(), [&](const WrittenBox& outer) {
        return outer.fqn == one.fqn && intersection(outer.box, one.box) == one.box;
      }));
      for_each_index(one.box.size, [&](const Shape& at) {
        ++written[one.fqn][flat(plus(at, one.box.offset), shapes[one.fqn])];
      });
    }
    ASSERT_NEAR(static_cast<double>(plan.bytes_of_rank[r]), bytes, 16);
  }
  for (const auto& [fqn, counts] : written)
    ASSERT_EQ(std::count(counts.begin(), counts.end(), 1), std::ssize(counts)) << fqn;
  ASSERT_EQ(deal_out(states, cut), shares) << "the same input, another result";
}

TEST(dealing, each_element_is_written_once_by_a_rank_that_holds_it) {
  Random random(1);
  const auto cut = [&](const SavedValue& value, const Box&) {
    return value.shape.empty() ? 0 : (value.shape.size() - 1) % 2;
  };
  for (int round = 0; round < rounds(300); ++round) {
    // Small tensors, and now and then ones that are large enough to be cut.
    const std::int64_t largest = random.once_in(4) ? 130 : 9;
    expect_written_once(states_of(random_holdings(random, random.between(1, 6), largest)), cut);
    expect_written_once(random_save(random, true).states, cut);
  }
}

TEST(dealing, strips_of_a_mesh_that_are_replicated_are_dealt_one_by_one_and_cut) {
  SavedValues values;
  values.mesh_shape = {2, 3};
  values.mesh_ranks = {4, 0, 2, 1, 3, 5};
  values.values = {{"strips",
                    SavedValue::Kind::shards,
                    {"bfloat16", "strided", 2, 0},
                    {8, 40000},
                    {{Placement::Kind::shard, 0, 2}, {}},
                    {}}};
  std::vector<RankState> states;
  for (std::int64_t rank = 0; rank < 6; ++rank) {
    states.push_back({rank, {}, {}});
    add_part(states.back(), values, {});
  }
  expect_written_once(states, [](const SavedValue&, const Box&) { return std::size_t{1}; });
  const GlobalSavePlan plan =
      plan_in_parts(states, [](const SavedValue&, const Box&) { return std::size_t{1}; });
  for (const std::vector<ItemCut>& cuts : plan.cuts) EXPECT_FALSE(cuts.empty());
  for (const std::uint64_t bytes : plan.bytes_of_rank)
    EXPECT_NEAR(static_cast<double>(bytes), 640000 / 6.0, 5000);
}

TEST(dealing, what_all_ranks_hold_is_dealt_out_evenly) {
  Random random(2);
  for (int round = 0; round < 100; ++round) {
    const std::int64_t ranks = random.between(2, 16);
    Holdings all;
    for (std::int64_t t = 0; t < 40; ++t) {
      const Tensor tensor{"t" + std::to_string(t), random_shape(random, random.between(1, 2), 1, 3000)};
      all.push_back({tensor, {whole(tensor.shape)}});
    }
    const std::vector<Holdings> holdings(static_cast<std::size_t>(ranks), all);
    ASSERT_LE(busiest_by_mean(deal_out(states_of(holdings), along_the_first)), 1.1);
  }
}

TEST(dealing, who_writes_more_of_its_own_writes_less_of_what_is_shared) {
  // Rank r alone holds r + 1 parts of ten; a tensor that all hold evens that out.
  std::vector<Holdings> holdings(4);
  const Tensor own{"own", {10, 500, 500}};
  const Tensor shared{"shared", {4000, 500}};
  std::int64_t begin = 0;
  for (std::int64_t rank = 0; rank < 4; ++rank) {
    holdings[static_cast<std::size_t>(rank)] = {{own, {{{begin, 0, 0}, {rank + 1, 500, 500}}}},
                                                {shared, {whole(shared.shape)}}};
    begin += rank + 1;
  }
  EXPECT_LE(busiest_by_mean(deal_out(states_of(holdings), along_the_first)), 1.1);
}

TEST(dealing, replicas_on_some_of_the_ranks_are_dealt_out_among_them) {
  // As HSDP has it: rank 2 i and rank 2 i + 1 hold the same shard; and one tensor is on all.
  std::vector<Holdings> holdings(8);
  const Tensor sharded{"sharded", {4000, 30000}};
  const Tensor norm{"norm", {1'000'000}};
  for (std::int64_t rank = 0; rank < 8; ++rank) {
    holdings[static_cast<std::size_t>(rank)] = {{sharded, {{{rank / 2 * 1000, 0}, {1000, 30000}}}},
                                                {norm, {whole(norm.shape)}}};
  }
  EXPECT_LE(busiest_by_mean(deal_out(states_of(holdings), along_the_first)), 1.1);
}

TEST(dealing, a_small_tensor_is_written_by_one_rank) {
  const Tensor tensor{"norm", {4096}};
  const std::vector<Holdings> holdings(8, {{tensor, {whole(tensor.shape)}}});
  int writers = 0;
  for (const std::vector<WrittenBox>& share : deal_out(states_of(holdings), along_the_first))
    writers += share.empty() ? 0 : 1;
  EXPECT_EQ(writers, 1);
}

TEST(dealing, the_lowest_rank_that_holds_a_box_writes_it_if_that_is_asked_for) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Random random(seed);
    const std::vector<RankState> states = states_of(random_holdings(random, random.between(1, 5), 40));
    ValuesByHash known;
    for (const RankState& state : states) learn_values(state, known);
    Dealing lowest;
    lowest.to_lowest = true;
    const GlobalSavePlan plan = plan_save(states, known, [&](const SavedValues&) { return lowest; });
    std::set<std::pair<std::string, std::pair<Shape, Shape>>> seen;  // by lower ranks
    for (std::size_t r = 0; r < states.size(); ++r) {
      std::set<std::pair<std::string, std::pair<Shape, Shape>>> written;
      each_written(states[r], known, {plan.left_to_others[r], {}},
                   [&](const SavedValue& value, const Box& box) {
                     written.insert({value.fqn, {box.offset, box.size}});
                   });
      each_written(states[r], known, {LeftToOthers(states[r].holdings.size()), {}},
                   [&](const SavedValue& value, const Box& box) {
                     const std::pair one{value.fqn, std::pair{box.offset, box.size}};
                     EXPECT_EQ(written.contains(one), seen.insert(one).second)
                         << one.first << " on rank " << r;
                   });
    }
  }
}

TEST(dealing, nothing_is_dealt_out_before_ranks_agree) {
  std::vector<RankState> states = states_of({{{{"a", {6}}, {{{0}, {6}}}}}, {{{"a", {7}}, {{{0}, {7}}}}}});
  ValuesByHash known;
  for (const RankState& state : states) learn_values(state, known);
  expect_error(ErrorKind::mismatch, {"a: expected bfloat16 [6] as on rank 0, found bfloat16 [7] on rank 1"},
               [&] {
                 plan_save(states, known, [&](const SavedValues&) -> Dealing {
                   ADD_FAILURE() << "asked how to deal out what ranks do not agree on";
                   return {};
                 });
               });
}

TEST(dealing, a_slice_outside_of_its_item_is_refused) {
  const std::vector<RankState> states = states_of({{{{"a", {6, 2}}, {{{2, 0}, {4, 2}}}}}});
  const auto write = [&](const ItemCut& cut) { return boxes_to_write(states[0], {{{}}, {cut}}); };
  EXPECT_EQ(write({0, 0, 0, 1, 3}).front().box, (Box{{3, 0}, {3, 2}}));
  for (const ItemCut& bad : {ItemCut{0, 0, 0, 1, 4}, ItemCut{0, 0, 0, 5, 0}, ItemCut{0, 0, 2, 0, 1}})
    expect_error(ErrorKind::malformed, {"a: this rank is to write a slice that it does not hold"},
                 [&] { write(bad); });
}

}  // namespace
}  // namespace shardwright
