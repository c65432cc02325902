#pragma once

#include <string>

#include "planner/names/catalog.h"
#include "storage/tools/simulated_ways.h"

namespace shardwright {

/// All that a simulation has counted, and what it comes to at these rates, as the text of a JSON object: the
/// whole, stages, the spread over ranks and nodes (min, mean, max), ways to read, files, ranks and nodes.
/// `shardwright simulate --json` prints its members. Throws as simulated_ways(); Error(argument) for a
/// simulation without ranks.
std::string simulation_facts(const Simulation& simulation, const Catalog& catalog,
                             const SimulatedRates& rates);

}  // namespace shardwright
