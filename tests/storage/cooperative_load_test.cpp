#include "storage/cooperative_load.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>

#include "planner/plan_wire.h"
#include "storage/load.h"
#include "tests/storage/decoded_checkpoint.h"

namespace shardwright {
namespace {

/// What ranks of one process do together: each reads its pieces, the bytes are exchanged, each places them,
/// and loads the rest for itself. Returns what all have read.
std::uint64_t load_together(const std::vector<LoadPlan>& plans, const Checkpoint& checkpoint,
                            const std::vector<std::unique_ptr<Destinations>>& ranks,
                            std::uint64_t round_bytes) {
  const std::size_t count = ranks.size();
  std::vector<std::vector<Transfer>> transfers;
  for (std::size_t r = 0; r < count; ++r) {
    const std::string bytes = encode_plan(plans[r], checkpoint.catalog, ranks[r]->specs);
    transfers.push_back(decode_transfers(bytes, checkpoint.catalog));
    EXPECT_EQ(transfers[r].size(), plans[r].transfers.size());
  }
  std::vector<std::unique_ptr<CooperativeLoad>> loads;
  for (std::size_t r = 0; r < count; ++r) {
    loads.push_back(std::make_unique<CooperativeLoad>(plans[r], checkpoint.catalog, ranks[r]->specs,
                                                      transfers, static_cast<int>(r), 2, round_bytes));
    EXPECT_EQ(loads[r]->rounds(), loads[0]->rounds());
  }
  for (std::size_t round = 0; round < loads[0]->rounds(); ++round) {
    std::vector<std::vector<std::string>> sent(count);  // [from][to]
    for (std::size_t r = 0; r < count; ++r) {
      const std::vector<std::uint64_t> to = loads[r]->bytes_to(round);
      std::string outgoing(std::accumulate(to.begin(), to.end(), std::uint64_t{0}), '\0');
      loads[r]->read(round, reinterpret_cast<std::byte*>(outgoing.data()));
      std::size_t begin = 0;
      for (const std::uint64_t bytes : to) {
        sent[r].push_back(outgoing.substr(begin, bytes));
        begin += bytes;
      }
      EXPECT_TRUE(sent[r][r].empty());
    }
    for (std::size_t r = 0; r < count; ++r) {
      std::string incoming;
      const std::vector<std::uint64_t> from = loads[r]->bytes_from(round);
      for (std::size_t other = 0; other < count; ++other) {
        EXPECT_EQ(sent[other][r].size(), from[other]);
        incoming += sent[other][r];
      }
      loads[r]->place(round, reinterpret_cast<const std::byte*>(incoming.data()));
    }
  }
  std::uint64_t read = 0;
  for (std::size_t r = 0; r < count; ++r) {
    read += loads[r]->bytes_read() + load(loads[r]->rest(), checkpoint.catalog, ranks[r]->specs).bytes_read;
  }
  return read;
}

TEST(cooperative_load, ranks_of_any_shards_get_what_plain_decoding_gives_and_never_read_more_than_alone) {
  Random random(5);
  int saved = 0;
  for (int round = 0; round < 60; ++round) {
    const RandomModel model = random_model(random);
    const Checkpoint checkpoint(random, model.stored);
    std::vector<std::unique_ptr<Destinations>> ranks;
    std::vector<LoadPlan> plans;
    std::uint64_t alone = 0;
    const std::int64_t count = random.between(1, 5);
    for (std::int64_t r = 0; r < count; ++r) {
      ranks.push_back(std::make_unique<Destinations>(random, model));
      plans.push_back(ranks.back()->plan(checkpoint));
      alone += reading_figures(plans.back(), checkpoint.catalog).bytes;
    }
    const auto round_bytes = static_cast<std::uint64_t>(random.one_of<int>({1, 1000, 20000, 1 << 24}));
    const std::uint64_t together = load_together(plans, checkpoint, ranks, round_bytes);
    for (const auto& rank : ranks) {
      ASSERT_NO_FATAL_FAILURE(rank->expect_decoded(checkpoint)) << "round " << round;
    }
    EXPECT_LE(together, alone);
    saved += together < alone;
  }
  EXPECT_GT(saved, 20);
}

TEST(cooperative_load, a_rank_that_sees_another_checkpoint_is_an_error_that_names_the_tensor) {
  Random random(6);
  const RandomModel model = random_model(random);
  const Checkpoint checkpoint(random, model.stored);
  const Destinations destinations(random, model);
  const LoadPlan plan = destinations.plan(checkpoint);
  const std::string bytes = encode_plan(plan, checkpoint.catalog, destinations.specs);
  Catalog other = checkpoint.catalog;
  SourceTensor& changed = other.tensors[plan.transfers.front().source];
  changed.shape.push_back(7);
  expect_error(ErrorKind::mismatch, {changed.name, "another checkpoint"},
               [&] { decode_transfers(bytes, other); });
  expect_error(ErrorKind::malformed, {"load plan"},
               [&] { decode_transfers(bytes.substr(0, bytes.size() / 2), checkpoint.catalog); });
}

}  // namespace
}  // namespace shardwright
