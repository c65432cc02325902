#include "storage/tools/simulated_ways.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "planner/error.h"

namespace shardwright {
namespace {

void expect_rates(const SimulatedRates& rates) {
  const auto expect = [](const char* name, double rate, bool may_be_zero) {
    if (std::isfinite(rate) && (rate > 0 || (may_be_zero && rate == 0))) return;
    throw Error(ErrorKind::argument, std::string("simulate: ") + name +
                                         ": expected a number above zero, found " + std::to_string(rate));
  };
  expect("storage", rates.storage, true);
  expect("node_reading", rates.node_reading, false);
  expect("node_memory", rates.node_memory, false);
  expect("connection", rates.connection, false);
  expect("decoding", rates.decoding, false);
  expect("request_wait", rates.request_wait, true);
  expect("requests_in_flight", rates.requests_in_flight, false);
  expect("exchange_wait", rates.exchange_wait, true);
  expect("exchange_bytes", rates.exchange_bytes, false);
}

/// Adds up, and keeps the most, over nodes.
struct OverNodes {
  double sum = 0;
  double most = 0;
  void add(double value) {
    sum += value;
    most = std::max(most, value);
  }
};

}  // namespace

std::vector<SimulatedWay> simulated_ways(const Simulation& simulation, const SimulatedRates& rates) {
  expect_rates(rates);
  double planning = 0;
  double held = 0;
  for (const SimulatedRank& rank : simulation.ranks) {
    planning = std::max(planning, rank.planning_seconds);
    held = std::max(held, static_cast<double>(rank.bytes_held));
  }
  const double of_all = static_cast<double>(simulation.world) /
                        std::max<double>(1, static_cast<double>(simulation.ranks.size()));
  const double nodes = of_all * static_cast<double>(simulation.nodes.size());
  const double read_by_job = static_cast<double>(simulation.bytes_read_by_job);

  OverNodes read[3], requests[3], handed, from_others;
  for (const SimulatedNode& node : simulation.nodes) {
    const auto distinct = static_cast<double>(node.bytes_distinct);
    read[0].add(static_cast<double>(node.bytes_read));
    requests[0].add(static_cast<double>(node.requests));
    read[1].add(static_cast<double>(node.bytes_read_together));
    requests[1].add(static_cast<double>(node.requests_together));
    read[2].add(read_by_job / nodes);
    requests[2].add(static_cast<double>(simulation.requests_of_job) / nodes);
    handed.add(static_cast<double>(node.bytes_needed) - distinct);
    from_others.add(std::max(0.0, static_cast<double>(node.bytes_needed) - read_by_job / nodes));
  }

  std::vector<SimulatedWay> ways;
  for (const auto kind :
       {SimulatedWay::Kind::apart, SimulatedWay::Kind::once_a_node, SimulatedWay::Kind::once_a_job}) {
    const auto which = static_cast<std::size_t>(kind);
    SimulatedWay way;
    way.kind = kind;
    way.bytes_from_storage = of_all * read[which].sum;
    way.requests = of_all * requests[which].sum;
    way.planning = planning;
    way.waiting = requests[which].most * rates.request_wait / rates.requests_in_flight;
    way.reading = read[which].most / rates.node_reading;
    if (rates.storage > 0) way.reading = std::max(way.reading, way.bytes_from_storage / rates.storage);
    if (kind == SimulatedWay::Kind::once_a_node) {
      way.bytes_in_nodes = of_all * handed.sum;
      way.in_nodes = handed.most / rates.node_memory;
    }
    if (kind == SimulatedWay::Kind::once_a_job) {
      way.bytes_on_wire = of_all * from_others.sum;
      way.on_wire = from_others.most / rates.connection +
                    std::ceil(from_others.most / rates.exchange_bytes) * rates.exchange_wait;
    }
    way.decoding = held / rates.decoding;
    ways.push_back(way);
  }
  return ways;
}

}  // namespace shardwright
