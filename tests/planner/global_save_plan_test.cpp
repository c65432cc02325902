#include "planner/save/global_save_plan.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <set>
#include <thread>

#include "planner/error.h"
#include "planner/save/plan_together.h"
#include "tests/planner/random_saves.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

ValuesByHash known_by(const std::vector<RankState>& states) {
  ValuesByHash known;
  for (const RankState& state : states) learn_values(state, known);
  return known;
}

GlobalSavePlan plan_of(const std::vector<RankState>& states) { return plan_save(states, known_by(states)); }

/// A box that a rank holds, by name.
struct Held {
  std::int64_t rank;
  SavedValue value;
  Box box;
  bool is_left;  ///< to others
};

/// What the ranks hold of each value, in a plan.
std::map<std::string, std::vector<Held>> all_held(const std::vector<RankState>& states,
                                                  const GlobalSavePlan& plan) {
  const ValuesByHash known = known_by(states);
  std::map<std::string, std::vector<Held>> held;
  for (std::size_t s = 0; s < states.size(); ++s) {
    const std::vector<SavedItems> holdings = items_of(states[s]);
    for (std::size_t p = 0; p < holdings.size(); ++p) {
      const auto& left = plan.left_to_others.at(s).at(p);
      auto corner = holdings[p].corners.begin();
      for (std::uint32_t i = 0; i < holdings[p].value.size(); ++i) {
        const SavedValue& value = known.at(states[s].holdings[p].values)->values.at(holdings[p].value[i]);
        const std::ptrdiff_t rank = std::ssize(value.shape);
        const Box box{Shape(corner, corner + rank), Shape(corner + rank, corner + 2 * rank)};
        corner += 2 * rank;
        held[value.fqn].push_back({states[s].rank, value, box, std::count(left.begin(), left.end(), i) > 0});
      }
    }
  }
  return held;
}

using Boxes = std::set<std::pair<Shape, Shape>>;

std::map<std::string, Boxes> chunks_of(const GlobalMetadata& metadata) {
  std::map<std::string, Boxes> chunks;
  for (std::size_t v = 0; v < metadata.values.values.size(); ++v) {
    const SavedValue& value = metadata.values.values[v];
    if (value.kind == SavedValue::Kind::object) continue;
    const Chunking& chunking = metadata.chunkings.at(metadata.chunking[v]);
    const auto rank = std::ssize(value.shape);
    Boxes& boxes = chunks[value.fqn];
    for (std::size_t c = 0; c < chunking.count(); ++c) {
      const auto corner = chunking.corners.begin() + 2 * rank * static_cast<std::ptrdiff_t>(c);
      boxes.emplace(Shape(corner, corner + rank), Shape(corner + rank, corner + 2 * rank));
    }
    EXPECT_EQ(boxes.size(), chunking.count()) << value.fqn << ": a chunk is there twice";
  }
  return chunks;
}

TEST(global_save_plan, every_element_is_written_once_and_the_metadata_says_where) {
  Random random(1);
  for (int round = 0; round < 150; ++round) {
    const RandomSave save = random_save(random, round % 3 != 0);
    const GlobalSavePlan plan = plan_of(save.states);
    const auto chunks = chunks_of(plan.metadata);
    std::vector<std::uint64_t> bytes(save.states.size(), 0);
    std::uint64_t bytes_held = 0;
    for (const auto& [fqn, held] : all_held(save.states, plan)) {
      const SavedValue& value = held.front().value;
      std::vector<int> written(static_cast<std::size_t>(volume(value.shape)), 0);
      Boxes boxes;
      for (const Held& item : held) {
        const auto size =
            static_cast<std::uint64_t>(volume(item.box.size)) * item.value.properties.element_bytes;
        bytes_held += size;
        if (item.is_left) continue;
        bytes.at(static_cast<std::size_t>(item.rank)) += size;
        boxes.emplace(item.box.offset, item.box.size);
        for_each_index(item.box.size, [&](const Shape& index) {
          ++written.at(flat(plus(item.box.offset, index), value.shape));
        });
      }
      ASSERT_EQ(std::count(written.begin(), written.end(), 1), std::ssize(written)) << fqn;
      if (value.kind != SavedValue::Kind::object) {
        ASSERT_EQ(chunks.at(fqn), boxes) << fqn;
      }
    }
    ASSERT_EQ(plan.bytes_of_rank, bytes);
    ASSERT_EQ(plan.bytes_held, bytes_held);
  }
}

/// The same states, every box of a mesh named.
std::vector<RankState> enumerated(const std::vector<RankState>& states) {
  const ValuesByHash known = known_by(states);
  std::vector<RankState> named;
  for (const RankState& state : states) {
    RankState& to = named.emplace_back();
    to.rank = state.rank;
    const std::vector<SavedItems> items = items_of(state);
    for (std::size_t p = 0; p < items.size(); ++p) {
      SavedValues values = *known.at(state.holdings[p].values);
      values.mesh_shape.clear();
      values.mesh_ranks.clear();
      for (SavedValue& value : values.values) value.placements.clear();
      add_part(to, values, items[p]);
    }
  }
  return named;
}

TEST(global_save_plan, a_mesh_and_the_boxes_it_stands_for_give_one_plan) {
  Random random(2);
  for (int round = 0; round < 150; ++round) {
    const RandomSave save = random_save(random, true);
    const std::vector<RankState> named = enumerated(save.states);
    const GlobalSavePlan a = plan_of(save.states);
    const GlobalSavePlan b = plan_of(named);
    ASSERT_EQ(chunks_of(a.metadata), chunks_of(b.metadata));
    ASSERT_EQ(a.bytes_held, b.bytes_held);
    ASSERT_EQ(a.chunks, b.chunks);
    // Half of the ranks describe, the others name: the planner looks box by box, and finds the same.
    std::vector<RankState> mixed = save.states;
    const SavedValues mesh = *known_by(save.states).at(save.states[0].holdings[0].values);
    SavedValues alone = mesh;
    alone.mesh_shape = {1};
    for (std::size_t s = 0; s < mixed.size(); ++s) mixed[s] = named[s];
    alone.mesh_ranks = {mixed.back().rank};
    for (SavedValue& value : alone.values) value.placements = {Placement{}};
    RankState& last = mixed.back();
    last.holdings.erase(last.holdings.begin());
    last.values.erase(last.values.begin());
    bool is_whole = true;  // this rank can only be described as alone where it holds all
    for (const SavedValue& value : mesh.values) {
      is_whole = is_whole && local_shape(value.shape, mesh.mesh_shape, coordinate_on_mesh(mesh, last.rank),
                                         value.placements) == value.shape;
    }
    if (!is_whole) continue;
    add_part(last, alone, {});
    ASSERT_EQ(chunks_of(plan_of(mixed).metadata), chunks_of(a.metadata));
  }
}

TEST(global_save_plan, replicas_are_shared_out_so_that_no_rank_has_a_tensor_more_than_another) {
  Random random(3);
  for (int round = 0; round < 20; ++round) {
    SavedValues values;
    values.mesh_shape = {random.between(2, 12)};
    values.mesh_ranks.resize(static_cast<std::size_t>(values.mesh_shape[0]));
    std::iota(values.mesh_ranks.begin(), values.mesh_ranks.end(), 0);
    std::uint64_t largest = 0;
    for (int i = 0; i < 60; ++i) {
      SavedValue& value = values.values.emplace_back();
      value.fqn = std::to_string(i);
      value.properties = {"float32", "strided", 4, 0};
      value.shape = {random.between(1, 1000)};
      value.placements = {Placement{}};
      largest = std::max(largest, 4 * static_cast<std::uint64_t>(value.shape[0]));
    }
    std::vector<RankState> states(values.mesh_ranks.size());
    for (std::size_t r = 0; r < states.size(); ++r) {
      states[r].rank = static_cast<std::int64_t>(r);
      add_part(states[r], values, {});
    }
    const GlobalSavePlan plan = plan_of(states);
    const auto [least, most] = std::minmax_element(plan.bytes_of_rank.begin(), plan.bytes_of_rank.end());
    ASSERT_LE(*most - *least, largest);
  }
}

TEST(global_save_plan, objects_go_round_among_the_ranks) {
  SavedValues values;
  SavedItems items;
  for (std::uint32_t i = 0; i < 8; ++i) {
    values.values.push_back({std::to_string(i), SavedValue::Kind::object, {}, {}, {}, {}});
    items.add(i, {}, {});
  }
  std::vector<RankState> states(4);
  for (std::size_t r = 0; r < 4; ++r) {
    states[r].rank = static_cast<std::int64_t>(r);
    add_part(states[r], values, items);
  }
  for (const LeftToOthers& left : plan_of(states).left_to_others) EXPECT_EQ(left[0].size(), 6U);
}

// --- what does not fit
// --------------------------------------------------------------------------------------------

/// Four ranks with two rows each of a tensor "w" of 8 x 3, and an object.
struct Rows {
  std::vector<SavedValues> values{4};
  std::vector<SavedItems> items{4};

  Rows() {
    for (std::size_t r = 0; r < 4; ++r) {
      values[r].values = {{"w", SavedValue::Kind::shards, {"float32", "strided", 4, 0}, {8, 3}, {}, {}},
                          {"o", SavedValue::Kind::object, {}, {}, {}, {}}};
      items[r].add(0, {2 * static_cast<std::int64_t>(r), 0}, {2, 3});
      items[r].add(1, {}, {});
    }
  }

  std::vector<RankState> states() const {
    std::vector<RankState> states(4);
    for (std::size_t r = 0; r < 4; ++r) {
      states[r].rank = static_cast<std::int64_t>(r);
      add_part(states[r], values[r], items[r]);
    }
    return states;
  }
};

TEST(global_save_plan, boxes_that_overlap_are_refused_with_their_ranks) {
  Rows rows;
  rows.items[2].corners[0] = 3;
  expect_error(ErrorKind::mismatch, {"w: ", "[2:4, 0:3]", "[3:5, 0:3]", "rank 1", "rank 2"},
               [&] { plan_of(rows.states()); });
}

TEST(global_save_plan, a_hole_is_refused_with_its_place_and_the_ranks_around_it) {
  Rows rows;
  rows.items[2] = {};
  rows.items[2].add(1, {}, {});
  expect_error(ErrorKind::mismatch, {"w: no rank holds [4:6, 0:3]", "ranks 0-3"},
               [&] { plan_of(rows.states()); });
}

TEST(global_save_plan, a_hole_in_a_grid_is_refused_with_its_place) {
  const std::vector<Box> grid{{{0, 0}, {5, 1}}, {{0, 1}, {5, 2}}, {{5, 0}, {3, 1}}, {{5, 1}, {3, 1}}};
  Rows rows;
  for (std::size_t r = 0; r < 4; ++r) {
    rows.items[r] = {};
    rows.items[r].add(0, grid[r].offset, grid[r].size);
    rows.items[r].add(1, {}, {});
  }
  expect_error(ErrorKind::mismatch, {"w: no rank holds [5:8, 2:3]; ranks 0-3"},
               [&] { plan_of(rows.states()); });
  rows.items[1] = {};
  rows.items[1].add(1, {}, {});
  expect_error(ErrorKind::mismatch, {"w: no rank holds [0:5, 1:3], nor 3 other elements"},
               [&] { plan_of(rows.states()); });
}

TEST(global_save_plan, a_tensor_that_one_rank_holds_whole_and_another_in_part_is_refused) {
  Rows rows;
  rows.items[0] = {};
  rows.items[0].add(0, {0, 0}, {8, 3});
  expect_error(ErrorKind::mismatch, {"w: ", "[0:8, 0:3] is on rank 0", "[2:4, 0:3] on rank 1"},
               [&] { plan_of(rows.states()); });
}

TEST(global_save_plan, ranks_that_differ_in_dtype_or_shape_are_named) {
  Rows rows;
  for (const std::size_t r : {1, 2}) rows.values[r].values[0].properties = {"bfloat16", "strided", 2, 0};
  expect_error(ErrorKind::mismatch,
               {"w: expected float32 [8, 3] as on ranks 0, 3, found bfloat16 [8, 3] on ranks 1-2"},
               [&] { plan_of(rows.states()); });
  Rows other;
  other.values[3].values[0].shape = {9, 3};
  expect_error(ErrorKind::mismatch,
               {"w: expected float32 [8, 3] as on ranks 0-2, found float32 [9, 3] on rank 3"},
               [&] { plan_of(other.states()); });
}

TEST(global_save_plan, an_object_with_a_tensors_name_is_refused) {
  Rows rows;
  rows.values[1].values[1] = {"o", SavedValue::Kind::tensor, {"float32", "strided", 4, 0}, {}, {}, {}};
  expect_error(ErrorKind::mismatch, {"o: expected an object as on ranks 0, 2-3, found float32 [] on rank 1"},
               [&] { plan_of(rows.states()); });
}

TEST(global_save_plan, a_mesh_without_all_its_ranks_is_refused) {
  Random random(4);
  RandomSave save = random_save(random, true);
  while (save.states.size() < 4) save = random_save(random, true);
  save.states.erase(save.states.begin() + 1);
  expect_error(ErrorKind::mismatch, {"m.", "but not on rank 1"}, [&] { plan_of(save.states); });
}

TEST(global_save_plan, a_state_that_nobody_has_described_is_refused) {
  const Rows rows;
  std::vector<RankState> states = rows.states();
  for (RankState& state : states) state.values.clear();
  expect_error(ErrorKind::mismatch, {"ranks 0-3 of 4"}, [&] { plan_of(states); });
}

TEST(global_save_plan, all_that_is_wrong_is_told_at_once) {
  Rows rows;
  rows.items[0].corners[2] = 3;
  rows.values[1].values.push_back({"x", SavedValue::Kind::shards, {"float32", "strided", 4, 0}, {2}, {}, {}});
  expect_error(ErrorKind::mismatch, {"w: ", "x: no rank holds [0:2]", "rank 1"},
               [&] { plan_of(rows.states()); });
}

// --- together
// -----------------------------------------------------------------------------------------------------

/// What each rank tells.
std::vector<std::string> told_by(const std::vector<RankState>& states, std::vector<SavePlanCache>& caches) {
  std::vector<std::string> told;
  for (std::size_t r = 0; r < states.size(); ++r) told.push_back(tell(told_state(states[r]), caches[r]));
  return told;
}

/// One save of all ranks, in turn; returns what each has learned and adds up the bytes moved.
std::vector<SavePlanOfRank> save_once(const std::vector<RankState>& states,
                                      std::vector<SavePlanCache>& caches, std::size_t* moved) {
  const std::vector<std::string> told = told_by(states, caches);
  const std::vector<std::string> answers = answer(told, caches[0]);
  std::vector<SavePlanOfRank> plans;
  for (std::size_t r = 0; r < states.size(); ++r) {
    *moved += told[r].size() + answers[r].size();
    plans.push_back(understand(answers[r], states[r], caches[r]));
  }
  return plans;
}

std::vector<LeftToOthers> left_by(const std::vector<SavePlanOfRank>& plans) {
  std::vector<LeftToOthers> left;
  for (const SavePlanOfRank& plan : plans) left.push_back(plan.left_to_others);
  return left;
}

TEST(plan_together, all_ranks_learn_the_plan_and_an_unchanged_save_moves_hashes) {
  Random random(5);
  for (int round = 0; round < 30; ++round) {
    const RandomSave save = random_save(random, true);
    const GlobalSavePlan plan = plan_of(save.states);
    std::vector<SavePlanCache> caches(save.states.size());
    std::size_t moved = 0;
    const auto first = save_once(save.states, caches, &moved);
    ASSERT_EQ(left_by(first), plan.left_to_others);
    ASSERT_EQ(encode(caches[0].plan->metadata), encode(plan.metadata));
    moved = 0;
    const auto again = save_once(save.states, caches, &moved);
    ASSERT_EQ(left_by(again), plan.left_to_others);
    for (const SavePlanOfRank& of_rank : again) ASSERT_TRUE(of_rank.unchanged);
    ASSERT_EQ(moved, save.states.size() * (2 * sizeof(Hash) + 2));  // state and job; letters
  }
}

TEST(plan_together, a_rank_of_another_version_is_named) {
  const Rows rows;
  std::vector<SavePlanCache> caches(4);
  std::vector<std::string> told = told_by(rows.states(), caches);
  told[2][2] = 2;  // the version is the first field, behind a letter
  told[3].pop_back();
  expect_error(ErrorKind::malformed,
               {"rank 2: expected what a rank has to save of version 1, found version 2", "rank 3: this is"},
               [&] { answer(told, caches[0]); });
  const auto plans = answer(told_by(rows.states(), caches), caches[0]);  // and the next save goes well
  EXPECT_FALSE(understand(plans[2], rows.states()[2], caches[2]).unchanged);
}

TEST(plan_together, a_rank_whose_boxes_are_none_is_named) {
  std::vector<RankState> states = Rows().states();
  states[1].holdings[0].packed = {0, 1, 7, 2};
  expect_error(ErrorKind::malformed, {"rank 1: ", "a box outside its tensor"}, [&] { plan_of(states); });
}

TEST(plan_together, a_message_that_is_none_is_refused) {
  const RankState mine = Rows().states().front();
  SavePlanCache cache;
  for (const char* bad : {"", "x", "p", "phash", "n", "n5", "n5:abc", "n99999999999999999999:", "n-1:"})
    expect_error(ErrorKind::malformed, {"same version"}, [&] { understand(bad, mine, cache); });
  for (const char* bad : {"", "x", "b", "bshort"})
    expect_error(ErrorKind::malformed, {"same version"}, [&] { answer({bad}, cache); });
}

TEST(plan_together, a_rank_that_differs_from_the_first_of_its_mesh_says_in_what) {
  std::vector<RankState> states;
  for (std::int64_t r = 0; r < 3; ++r) {
    SavedValues values;
    values.mesh_shape = {3};
    values.mesh_ranks = {0, 1, 2};
    const Shape shape{6, r == 1 ? 5 : 4};
    values.values = {{"w",
                      SavedValue::Kind::shards,
                      {"float32", "strided", 4, 0},
                      shape,
                      {{Placement::Kind::shard, 0, 1}},
                      {}}};
    states.push_back({r, {{hash_of(encode(values)), {}}}, {encode(values)}});
  }
  std::vector<SavePlanCache> caches(3);
  const std::vector<std::string> answers = answer(told_by(states, caches), caches[0]);
  for (const std::size_t r : {0, 1, 2}) {
    EXPECT_TRUE(is_refusal(answers[r]));
    expect_error(ErrorKind::mismatch, {"rank 1 differs from the first of its mesh"},
                 [&] { understand(answers[r], states[r], caches[r]); });
  }
  expect_error(ErrorKind::mismatch,
               {"w: expected float32 [6, 4] as on rank 0, found float32 [6, 5] on rank 1"},
               [&] { understand(answers[1], states[1], caches[1]); });
}

TEST(plan_together, hashes_that_rank_0_does_not_know_are_refused_and_the_next_save_goes_well) {
  const Rows rows;
  std::vector<SavePlanCache> caches(4);
  std::size_t moved = 0;
  save_once(rows.states(), caches, &moved);
  caches[0] = {};
  const auto answers = answer(told_by(rows.states(), caches), caches[0]);
  for (std::size_t r = 0; r < 4; ++r) {
    expect_error(ErrorKind::mismatch, {"no plan with ranks 1-3", "for each process group"},
                 [&] { understand(answers[r], rows.states()[r], caches[r]); });
  }
  EXPECT_EQ(left_by(save_once(rows.states(), caches, &moved)), plan_of(rows.states()).left_to_others);
}

TEST(plan_together, a_change_on_one_rank_plans_anew_and_a_rank_that_forgot_is_told_again) {
  const Rows rows;
  std::vector<SavePlanCache> caches(4);
  std::size_t moved = 0;
  const auto first = save_once(rows.states(), caches, &moved);
  Rows changed;
  changed.items[3] = {};
  changed.items[3].add(0, {6, 0}, {2, 3});  // rank 3 no longer has the object
  const auto second = save_once(changed.states(), caches, &moved);
  EXPECT_EQ(left_by(second), plan_of(changed.states()).left_to_others);
  EXPECT_NE(left_by(second), left_by(first));
  caches[2] = {};
  const auto third = save_once(changed.states(), caches, &moved);
  EXPECT_EQ(left_by(third), left_by(second));
  EXPECT_TRUE(third[1].unchanged);
  EXPECT_FALSE(third[2].unchanged);
}

TEST(plan_together, a_plan_that_a_rank_never_heard_of_is_told_again) {
  const Rows rows;
  std::vector<SavePlanCache> caches(4);
  std::size_t moved = 0;
  const auto expected = save_once(rows.states(), caches, &moved);
  Rows changed;
  changed.values[0].values[0].fqn = changed.values[1].values[0].fqn = "v";
  changed.values[2].values[0].fqn = changed.values[3].values[0].fqn = "v";
  answer(told_by(changed.states(), caches), caches[0]);  // and the answers are lost
  for (const SavePlanOfRank& plan : save_once(changed.states(), caches, &moved)) EXPECT_FALSE(plan.unchanged);
}

TEST(plan_together, a_mesh_is_described_by_its_first_rank_alone) {
  Random random(6);
  const RandomSave save = random_save(random, true);
  for (const RankState& state : save.states) {
    const RankState told = decode_state(told_state(state));
    EXPECT_EQ(told.holdings, state.holdings);
    const std::int64_t first = decode_values(state.values.front()).mesh_ranks.front();
    EXPECT_EQ(told.values.size(), state.rank == first ? 2U : 1U);
  }
}

}  // namespace
}  // namespace shardwright
