#include "storage/tools/simulated_ways.h"

#include <gtest/gtest.h>

#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

/// Half of a job of four nodes of two ranks, by numbers made up: the job needs 1,000 bytes.
Simulation half_of_a_job() {
  Simulation simulation;
  simulation.world = 8;
  simulation.bytes_needed_by_job = 1000;
  simulation.bytes_read_by_job = 1200;
  simulation.requests_of_job = 40;
  for (const std::uint64_t held : {500, 700, 300, 200}) {
    simulation.ranks.emplace_back().bytes_held = held;
    simulation.ranks.back().planning_seconds = 0.25;
  }
  simulation.nodes = {{0, 1500, 1600, 30, 800, 900, 20}, {1, 1000, 1000, 10, 1000, 1000, 10}};
  return simulation;
}

constexpr SimulatedRates rates{.storage = 0,
                               .node_reading = 100,
                               .node_memory = 70,
                               .connection = 10,
                               .decoding = 7,
                               .request_wait = 0.5,
                               .requests_in_flight = 2,
                               .exchange_wait = 3,
                               .exchange_bytes = 250};

TEST(simulated_ways, are_what_the_counts_and_rates_come_to) {
  const std::vector<SimulatedWay> ways = simulated_ways(half_of_a_job(), rates);
  ASSERT_EQ(ways.size(), 3u);
  const SimulatedWay& apart = ways[0];
  const SimulatedWay& node = ways[1];
  const SimulatedWay& job = ways[2];
  EXPECT_EQ(apart.bytes_from_storage, 2 * 2600);
  EXPECT_EQ(node.bytes_from_storage, 2 * 1900);
  EXPECT_EQ(job.bytes_from_storage, 1200);  // 300 a node
  EXPECT_EQ(apart.reading, 16);
  EXPECT_EQ(node.reading, 10);
  EXPECT_EQ(job.reading, 3);
  EXPECT_EQ(apart.waiting, 30 * 0.25);
  EXPECT_EQ(job.waiting, 10 * 0.25);
  EXPECT_EQ(apart.bytes_in_nodes, 0);
  EXPECT_EQ(node.bytes_in_nodes, 2 * 700);
  EXPECT_EQ(node.in_nodes, 10);
  EXPECT_EQ(node.bytes_on_wire, 0);
  EXPECT_EQ(job.bytes_on_wire, 2 * (1200 + 700));
  EXPECT_EQ(job.on_wire, 120 + 5 * 3);
  EXPECT_EQ(job.in_nodes, 0);
  for (const SimulatedWay& way : ways) {
    EXPECT_EQ(way.decoding, 100);
    EXPECT_EQ(way.planning, 0.25);
  }
  EXPECT_EQ(apart.seconds(), 0.25 + 7.5 + 16 + 100);
}

TEST(simulated_ways, a_storage_that_is_slower_than_the_nodes_is_the_limit) {
  SimulatedRates slow = rates;
  slow.storage = 4;
  const std::vector<SimulatedWay> ways = simulated_ways(half_of_a_job(), slow);
  EXPECT_EQ(ways[0].reading, 5200 / 4.0);
  EXPECT_EQ(ways[2].reading, 1200 / 4.0);
}

TEST(simulated_ways, rates_that_are_none_are_refused) {
  SimulatedRates none = rates;
  none.connection = 0;
  expect_error(ErrorKind::argument, {"connection", "above zero"},
               [&] { simulated_ways(half_of_a_job(), none); });
}

}  // namespace
}  // namespace shardwright
