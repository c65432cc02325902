#include "storage/boxes/joined_tasks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "planner/models/models.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/planner/rounds.h"
#include "tests/storage/decoded_checkpoint.h"

namespace shardwright {
namespace {

/// The positions in the file of the bytes that a task wants.
std::set<std::uint64_t> wanted_by(const ReadTask& task) {
  std::set<std::uint64_t> positions;
  for (const BoxReading* const reading : {&task.weights, &task.scales})
    for (std::uint64_t i = 0; i < reading->staged_bytes; ++i) positions.insert(reading->begin + i);
  return positions;
}

/// The lengths of the stretches of a request that none of its tasks wants.
std::vector<std::uint64_t> gaps_in(const JoinedTasks& joined) {
  std::set<std::uint64_t> wanted;
  for (const ReadTask& task : joined.tasks) wanted.merge(wanted_by(task));
  std::vector<std::uint64_t> gaps;
  std::uint64_t before = joined.begin;
  for (const std::uint64_t position : wanted) {
    if (position > before) gaps.push_back(position - before);
    before = position + 1;
  }
  EXPECT_EQ(before, joined.end);
  return gaps;
}

TEST(joined_tasks, all_come_once_in_order_and_requests_stay_within_what_is_allowed) {
  Random random(21);
  std::size_t joined_at_all = 0;
  for (int round = 0; round < rounds(300); ++round) {
    const RandomModel model = random_model(random, 40);
    const Checkpoint checkpoint(random, model.stored);
    const Destinations destinations(random, model);
    const LoadPlan plan = destinations.plan(checkpoint);
    const Catalog& catalog = checkpoint.catalog;
    const Joining joining{static_cast<std::uint64_t>(random.one_of<int>({0, 300, 4000, 50'000})),
                          static_cast<std::uint64_t>(random.one_of<int>({0, 10, 500})),
                          static_cast<std::uint64_t>(random.one_of<int>({0, 100, 5000}))};
    std::vector<ReadCosts> costs(catalog.files.size(), costs_of_remote_objects);
    TaskCutter alone(plan, catalog, 4096, costs);
    TaskCutter cutter(plan, catalog, 4096, costs);
    TaskJoiner joiner(cutter, catalog, joining);
    std::uint64_t gaps_in_all = 0;
    JoinedTasks joined;
    while (joiner.next(joined)) {
      for (const ReadTask& task : joined.tasks) {
        ReadTask expected;
        ASSERT_TRUE(alone.next(expected));
        EXPECT_EQ(task.transfer, expected.transfer);
        EXPECT_EQ(task.box, expected.box);
      }
      if (joined.tasks.size() == 1) continue;
      ++joined_at_all;
      EXPECT_LE(joined.end - joined.begin, joining.request_bytes);
      for (const ReadTask& task : joined.tasks) {
        EXPECT_EQ(catalog.tensors[task.source].file, catalog.tensors[joined.tasks.front().source].file);
        EXPECT_TRUE(task.weights.in_one_request);
        const std::set<std::uint64_t> wanted = wanted_by(task);
        EXPECT_GE(*wanted.begin(), joined.begin);
        EXPECT_LT(*wanted.rbegin(), joined.end);
      }
      for (const std::uint64_t gap : gaps_in(joined)) {
        EXPECT_LE(gap, joining.gap_bytes);
        gaps_in_all += gap;
      }
    }
    ReadTask none;
    EXPECT_FALSE(alone.next(none));
    EXPECT_LE(gaps_in_all, joining.gaps_bytes);
  }
  EXPECT_GT(joined_at_all, static_cast<std::size_t>(rounds(100)));
}

}  // namespace
}  // namespace shardwright
