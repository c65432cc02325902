#include "storage/tools/simulation_facts.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

using Json = nlohmann::json;

/// Three ranks of two stages on two nodes, by numbers made up.
Simulation three_ranks() {
  Simulation simulation;
  simulation.world = 4;
  simulation.ranks = {{0, 0, 0.5, 3, 100, 120, 4, 5, 200, 20, 10, {{0, 70}, {1, 50}}},
                      {1, 1, 0.25, 5, 300, 300, 2, 9, 600, 60, 30, {{1, 300}}},
                      {2, 0, 1.5, 1, 200, 240, 9, 2, 400, 40, 20, {{0, 240}}}};
  simulation.nodes = {{0, 400, 420, 6, 350, 360, 5}, {1, 200, 240, 9, 150, 160, 4}};
  simulation.native_tensors = 7;
  simulation.bytes_native = 1200;
  simulation.bytes_checkpoint = 900;
  simulation.bytes_distinct = 450;
  simulation.bytes_needed_by_job = 500;
  simulation.bytes_read_by_job = 520;
  simulation.requests_of_job = 11;
  simulation.seconds = 2.5;
  return simulation;
}

Catalog two_files() {
  Catalog catalog;
  catalog.files = {{"a.safetensors", 1000}, {"b.safetensors", 2000}};
  catalog.tensors.resize(6);
  return catalog;
}

Json facts_of(const Simulation& simulation) {
  return Json::parse(simulation_facts(simulation, two_files(), {}));
}

TEST(simulation_facts, the_whole_is_told_under_its_names) {
  const Json facts = facts_of(three_ranks());
  const Json expected = Json::parse(R"({"ranks": 4, "simulated_ranks": 3, "simulated_nodes": 2,
      "checkpoint_tensors": 6, "checkpoint_files": 2, "checkpoint_bytes": 900, "native_tensors": 7,
      "native_bytes": 1200, "distinct_bytes": 450, "job_bytes": 500, "bytes_exchanged_by_load": 0, "save": null,
      "simulation_seconds": 2.5})");
  for (const auto& [name, value] : expected.items()) EXPECT_EQ(facts.at(name), value) << name;
}

TEST(simulation_facts, ranks_and_nodes_are_listed_with_all_that_was_counted) {
  const Json facts = facts_of(three_ranks());
  EXPECT_EQ(facts["rank_list"].size(), 3u);
  EXPECT_EQ(facts["rank_list"][0],
            Json::parse(R"({"rank": 0, "stage": 0, "planning_seconds": 0.5, "tensors": 3,
      "files": 2, "bytes_needed": 100, "bytes_read": 120, "requests": 4, "extents": 5, "bytes_held": 200,
      "bytes_saved": 20, "bytes_exported": 10, "file_bytes": {"0": 70, "1": 50}})"));
  EXPECT_EQ(facts["node_list"][1], Json::parse(R"({"node": 1, "bytes_needed": 200, "bytes_read": 240,
      "requests": 9, "bytes_distinct": 150, "bytes_read_together": 160, "requests_together": 4})"));
}

TEST(simulation_facts, spreads_are_of_all_ranks_of_those_of_a_stage_and_of_nodes) {
  const Json facts = facts_of(three_ranks());
  const auto spread = [](const char* text) { return Json::parse(text); };
  EXPECT_EQ(facts["per_rank"]["bytes_needed"], spread(R"({"min": 100, "mean": 200.0, "max": 300})"));
  EXPECT_EQ(facts["per_rank"]["planning_seconds"], spread(R"({"min": 0.25, "mean": 0.75, "max": 1.5})"));
  EXPECT_EQ(facts["per_rank"]["files"]["max"], 2);
  EXPECT_EQ(facts["per_rank"].size(), 10u);
  EXPECT_EQ(facts["per_node"]["requests_together"], spread(R"({"min": 4, "mean": 4.5, "max": 5})"));
  EXPECT_EQ(facts["per_node"].size(), 6u);
  ASSERT_EQ(facts["stages"].size(), 2u);
  const Json& first = facts["stages"][0];
  EXPECT_EQ(first["stage"], 0);
  EXPECT_EQ(first["simulated_ranks"], 2);
  EXPECT_EQ(first["per_rank"]["bytes_held"], spread(R"({"min": 200, "mean": 300.0, "max": 400})"));
  EXPECT_DOUBLE_EQ(first["read_max_over_mean"].get<double>(), 240.0 / 180.0);
  EXPECT_EQ(facts["stages"][1]["stage"], 1);
  EXPECT_EQ(facts["stages"][1]["read_max_over_mean"], 1.0);
  EXPECT_DOUBLE_EQ(facts["amplification"]["alone"].get<double>(), 660.0 / 500.0);
  EXPECT_DOUBLE_EQ(facts["amplification"]["together"].get<double>(), 520.0 / 500.0);
}

TEST(simulation_facts, files_count_the_ranks_that_read_them) {
  EXPECT_EQ(facts_of(three_ranks())["files"], Json::parse(R"([
      {"name": "a.safetensors", "bytes": 1000, "ranks": 2, "bytes_read": 310},
      {"name": "b.safetensors", "bytes": 2000, "ranks": 2, "bytes_read": 350}])"));
}

TEST(simulation_facts, ways_are_those_of_the_rates_and_the_best_takes_least) {
  const Simulation simulation = three_ranks();
  const SimulatedRates rates{.storage = 100, .connection = 1e-3};
  const std::vector<SimulatedWay> ways = simulated_ways(simulation, rates);
  const Json facts = Json::parse(simulation_facts(simulation, two_files(), rates));
  const char* names[] = {"alone", "together", "job"};
  for (std::size_t way = 0; way < 3; ++way) {
    const Json& seconds = facts["seconds"][names[way]];
    EXPECT_EQ(seconds.size(), 6u);
    EXPECT_EQ(seconds["requests"].get<double>(), ways[way].waiting);
    EXPECT_EQ(seconds["between nodes"].get<double>(), ways[way].on_wire);
    EXPECT_EQ(seconds["handing around"].get<double>(), ways[way].in_nodes);
    EXPECT_EQ(facts["ways"][names[way]]["bytes_from_storage"].get<double>(), ways[way].bytes_from_storage);
  }
  EXPECT_LT(ways[1].seconds(), ways[0].seconds());
  EXPECT_LT(ways[1].seconds(), ways[2].seconds());
  EXPECT_EQ(facts["best"], "together");
}

TEST(simulation_facts, a_save_is_told_where_one_was_planned) {
  Simulation simulation = three_ranks();
  simulation.save = SimulatedSave{4, 1000, 136, 300, 0.5, 0.125, 12, 400, {1, 2, 3, 4}};
  EXPECT_EQ(facts_of(simulation)["save"], Json::parse(R"({"bytes_exchanged": 1000, "bytes_unchanged": 136,
      "most_bytes_of_rank": 300, "seconds": 0.5, "seconds_unchanged": 0.125, "chunks": 12,
      "bytes_metadata": 400})"));
}

TEST(simulation_facts, none_are_of_a_simulation_without_ranks) {
  expect_error(ErrorKind::argument, {"expected a simulation of ranks"},
               [] { simulation_facts({}, two_files(), {}); });
}

}  // namespace
}  // namespace shardwright
