#include "storage/tools/simulation_facts.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "planner/error.h"

namespace shardwright {
namespace {

using Json = nlohmann::ordered_json;

// Names of what is counted for each rank and each node, and of the ways to read.
constexpr std::initializer_list<const char*> rank_figures{
    "planning_seconds", "tensors", "files",      "bytes_needed", "bytes_read",
    "requests",         "extents", "bytes_held", "bytes_saved",  "bytes_exported"};
constexpr std::initializer_list<const char*> node_figures{
    "bytes_needed", "bytes_read", "requests", "bytes_distinct", "bytes_read_together", "requests_together"};

const char* name_of(SimulatedWay::Kind kind) {
  switch (kind) {
    case SimulatedWay::Kind::apart:
      return "alone";
    case SimulatedWay::Kind::once_a_node:
      return "together";
    case SimulatedWay::Kind::once_a_job:
      break;
  }
  return "job";
}

Json facts_of(const SimulatedRank& rank) {
  Json bytes_of_file = Json::object();
  auto& files = bytes_of_file.get_ref<Json::object_t&>();
  for (const FileShare& share : rank.files)  // each is there once; emplace() would look through all of them
    files.Json::object_t::Container::emplace_back(std::to_string(share.file), share.bytes);
  return {{"rank", rank.rank},
          {"stage", rank.stage},
          {"planning_seconds", rank.planning_seconds},
          {"tensors", rank.tensors},
          {"files", rank.files.size()},
          {"bytes_needed", rank.bytes_needed},
          {"bytes_read", rank.bytes_read},
          {"requests", rank.requests},
          {"extents", rank.extents},
          {"bytes_held", rank.bytes_held},
          {"bytes_saved", rank.bytes_saved},
          {"bytes_exported", rank.bytes_exported},
          {"file_bytes", std::move(bytes_of_file)}};
}

Json facts_of(const SimulatedNode& node) {
  return {{"node", node.node},
          {"bytes_needed", node.bytes_needed},
          {"bytes_read", node.bytes_read},
          {"requests", node.requests},
          {"bytes_distinct", node.bytes_distinct},
          {"bytes_read_together", node.bytes_read_together},
          {"requests_together", node.requests_together}};
}

Json facts_of(const std::optional<SimulatedSave>& save) {
  if (!save) return nullptr;
  return {{"bytes_exchanged", save->bytes_exchanged},       {"bytes_unchanged", save->bytes_unchanged},
          {"most_bytes_of_rank", save->most_bytes_of_rank}, {"seconds", save->seconds},
          {"seconds_unchanged", save->seconds_unchanged},   {"chunks", save->chunks},
          {"bytes_metadata", save->bytes_metadata}};
}

/// The least, the mean and the most of each figure. There is an item.
Json spreads(const std::vector<const Json*>& items, std::initializer_list<const char*> figures) {
  Json found = Json::object();
  for (const char* figure : figures) {
    const Json* least = &items.front()->at(figure);
    const Json* most = least;
    double sum = 0;
    for (const Json* item : items) {
      const Json& value = item->at(figure);
      if (value < *least) least = &value;
      if (value > *most) most = &value;
      sum += value.get<double>();
    }
    found[figure] = {{"min", *least}, {"mean", sum / static_cast<double>(items.size())}, {"max", *most}};
  }
  return found;
}

Json stages_of(const Json& ranks) {
  std::map<std::int64_t, std::vector<const Json*>> by_stage;
  for (const Json& rank : ranks) by_stage[rank.at("stage").get<std::int64_t>()].push_back(&rank);
  Json stages = Json::array();
  for (const auto& [stage, of_stage] : by_stage) {
    Json facts{{"stage", stage},
               {"simulated_ranks", of_stage.size()},
               {"per_rank", spreads(of_stage, rank_figures)}};
    const Json& read = facts["per_rank"]["bytes_read"];
    const double mean = read["mean"].get<double>();
    facts["read_max_over_mean"] = mean > 0 ? read["max"].get<double>() / mean : 1.0;
    stages.push_back(std::move(facts));
  }
  return stages;
}

Json files_of(const Simulation& simulation, const Catalog& catalog) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> read(catalog.files.size());  // ranks, and bytes
  for (const SimulatedRank& rank : simulation.ranks) {
    for (const FileShare& share : rank.files) {
      ++read.at(share.file).first;
      read.at(share.file).second += share.bytes;
    }
  }
  Json files = Json::array();
  for (std::size_t file = 0; file < read.size(); ++file) {
    files.push_back({{"name", catalog.files[file].name},
                     {"bytes", catalog.files[file].size},
                     {"ranks", read[file].first},
                     {"bytes_read", read[file].second}});
  }
  return files;
}

void add_ways(const std::vector<SimulatedWay>& ways, Json& facts) {
  for (const SimulatedWay& way : ways) {
    facts["seconds"][name_of(way.kind)] = {{"planning", way.planning},       {"requests", way.waiting},
                                           {"reading", way.reading},         {"between nodes", way.on_wire},
                                           {"handing around", way.in_nodes}, {"decoding", way.decoding}};
    facts["ways"][name_of(way.kind)] = {{"bytes_from_storage", way.bytes_from_storage},
                                        {"bytes_on_wire", way.bytes_on_wire},
                                        {"bytes_in_nodes", way.bytes_in_nodes},
                                        {"requests", way.requests}};
  }
  const auto best = std::min_element(
      ways.begin(), ways.end(),
      [](const SimulatedWay& a, const SimulatedWay& b) { return a.seconds() < b.seconds(); });
  facts["best"] = name_of(best->kind);
}

std::vector<const Json*> all_of(const Json& items) {
  std::vector<const Json*> all;
  for (const Json& item : items) all.push_back(&item);
  return all;
}

}  // namespace

std::string simulation_facts(const Simulation& simulation, const Catalog& catalog,
                             const SimulatedRates& rates) {
  if (simulation.ranks.empty() || simulation.nodes.empty())
    throw Error(ErrorKind::argument, "simulation_facts: expected a simulation of ranks, found none");
  const std::vector<SimulatedWay> ways = simulated_ways(simulation, rates);
  std::uint64_t distinct = 0, read = 0, read_together = 0;
  for (const SimulatedNode& node : simulation.nodes) {
    distinct += node.bytes_distinct;
    read += node.bytes_read;
    read_together += node.bytes_read_together;
  }
  const auto over_distinct = [&](std::uint64_t bytes) {
    return static_cast<double>(bytes) / static_cast<double>(std::max<std::uint64_t>(distinct, 1));
  };
  Json ranks = Json::array();
  for (const SimulatedRank& rank : simulation.ranks) ranks.push_back(facts_of(rank));
  Json nodes = Json::array();
  for (const SimulatedNode& node : simulation.nodes) nodes.push_back(facts_of(node));
  Json facts{{"ranks", simulation.world},
             {"simulated_ranks", ranks.size()},
             {"simulated_nodes", nodes.size()},
             {"stages", stages_of(ranks)},
             {"checkpoint_tensors", catalog.tensors.size()},
             {"checkpoint_files", catalog.files.size()},
             {"checkpoint_bytes", simulation.bytes_checkpoint},
             {"native_tensors", simulation.native_tensors},
             {"native_bytes", simulation.bytes_native},
             {"distinct_bytes", simulation.bytes_distinct},
             {"job_bytes", simulation.bytes_needed_by_job},
             {"bytes_exchanged_by_load", 0},  // every rank plans for itself from the headers
             {"save", facts_of(simulation.save)},
             {"simulation_seconds", simulation.seconds},
             {"per_rank", spreads(all_of(ranks), rank_figures)},
             {"per_node", spreads(all_of(nodes), node_figures)},
             {"amplification", {{"alone", over_distinct(read)}, {"together", over_distinct(read_together)}}}};
  add_ways(ways, facts);
  facts["files"] = files_of(simulation, catalog);
  facts["rank_list"] = std::move(ranks);
  facts["node_list"] = std::move(nodes);
  return facts.dump();
}

}  // namespace shardwright
