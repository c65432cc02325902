#include "storage/cooperative_load.h"

#include <gtest/gtest.h>

#include <memory>
#include <numeric>

#include "planner/plan_wire.h"
#include "storage/load.h"
#include "storage/uring.h"
#include "tests/storage/decoded_checkpoint.h"
#include "tests/storage/ways_to_read.h"

namespace shardwright {
namespace {

/// What ranks of one process do together: each reads its pieces, the bytes are exchanged, each places them,
/// and loads the rest for itself. Returns each rank's report.
std::vector<LoadReport> load_together(const std::vector<LoadPlan>& plans, const Checkpoint& checkpoint,
                                      const std::vector<std::unique_ptr<Destinations>>& ranks,
                                      const std::vector<LoadOptions>& options) {
  const std::size_t count = ranks.size();
  std::vector<std::vector<Transfer>> transfers;
  for (std::size_t r = 0; r < count; ++r) {
    const std::string bytes = encode_plan(plans[r], checkpoint.catalog, ranks[r]->specs);
    transfers.push_back(decode_transfers(bytes, checkpoint.catalog));
    EXPECT_EQ(transfers[r].size(), plans[r].transfers.size());
  }
  std::vector<std::unique_ptr<CooperativeLoad>> loads;
  std::vector<CooperationTerms> terms;
  for (std::size_t r = 0; r < count; ++r) {
    loads.push_back(
        std::make_unique<CooperativeLoad>(plans[r], checkpoint.catalog, ranks[r]->specs, options[r]));
    terms.push_back(loads[r]->terms());
  }
  for (std::size_t r = 0; r < count; ++r) {
    loads[r]->begin(transfers, terms, static_cast<int>(r));
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
  std::vector<LoadReport> reports;
  for (std::size_t r = 0; r < count; ++r) {
    EXPECT_EQ(loads[r]->bytes_done(), loads[r]->bytes_in_all());
    reports.push_back(loads[r]->finish(options[r]));
  }
  return reports;
}

TEST(cooperative_load, ranks_of_any_shards_get_what_plain_decoding_gives_and_never_read_more_than_alone) {
  Random random(5);
  int saved = 0;
  int direct = 0;
  int in_background = 0;
  bool may_be_direct = true;
  for (int round = 0; round < 60; ++round) {
    const RandomModel model = random_model(random);
    const Checkpoint checkpoint(random, model.stored);
    may_be_direct = may_be_direct && allows_direct_reads(checkpoint);
    std::vector<std::unique_ptr<Destinations>> ranks;
    std::vector<LoadPlan> plans;
    std::vector<LoadOptions> options;
    std::uint64_t alone = 0;
    const bool as_usual = random.once_in(2);
    const std::int64_t count = random.between(1, 5);
    for (std::int64_t r = 0; r < count; ++r) {
      ranks.push_back(std::make_unique<Destinations>(random, model));
      plans.push_back(ranks.back()->plan(checkpoint));
      alone += reading_figures(plans.back(), checkpoint.catalog).bytes;
      options.emplace_back().threads = static_cast<int>(random.between(1, 4));
      if (as_usual) continue;
      choose_reads(random, options.back());
      options.back().staging_bytes =
          static_cast<std::size_t>(random.one_of<int>({0, 8192, 20000, 300000, 5 << 20}));
    }
    std::uint64_t together = 0;
    const std::vector<LoadReport> reports = load_together(plans, checkpoint, ranks, options);
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      ASSERT_NO_FATAL_FAILURE(ranks[r]->expect_decoded(checkpoint)) << "round " << round;
      together += reports[r].bytes_read;
      EXPECT_TRUE(options[r].staging_bytes < 20000 ||
                  reports[r].peak_staging_bytes <= options[r].staging_bytes)
          << reports[r].peak_staging_bytes << " of " << options[r].staging_bytes;
      EXPECT_EQ(reports[r].bytes_needed, plans[r].bytes_needed);
      EXPECT_LE(reports[r].files_direct, reports[r].files);
      EXPECT_LE(reports[r].files_io_uring, reports[r].files);
      direct += reports[r].bytes_received > 0 && reports[r].files_direct > 0;
      in_background += reports[r].bytes_received > 0 && reports[r].files_io_uring > 0;
    }
    if (!as_usual) continue;
    EXPECT_LE(together, alone);
    saved += together < alone;
  }
  EXPECT_GT(saved, 10);
  EXPECT_TRUE(direct > 5 || !may_be_direct);
  EXPECT_TRUE(in_background > 5 || !has_io_uring());
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
