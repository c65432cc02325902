#pragma once

#include <cstdint>
#include <vector>

#include "storage/tools/simulate.h"

namespace shardwright {

/// What the machines of a simulation are taken to do. Everything else in it is counted or measured.
struct SimulatedRates {
  double storage = 0;              ///< bytes/s that the storage gives the whole job; 0: no limit
  double node_reading = 10e9;      ///< bytes/s that a node reads from it
  double node_memory = 100e9;      ///< bytes/s that the ranks of a node hand to each other
  double connection = 50e9;        ///< bytes/s that a node gets from other nodes, and sends them meanwhile
  double decoding = 5e9;           ///< bytes/s that a rank decodes, of what it holds afterwards
  double request_wait = 0.5e-3;    ///< seconds that a request to the storage waits before its bytes come
  double requests_in_flight = 32;  ///< of a node
  double exchange_wait = 0.1e-3;   ///< seconds that a round between nodes takes beside its bytes
  double exchange_bytes = 64e6;    ///< that a node gets in a round
};

/// One of the ways in which the ranks of a job may read. A sample of nodes stands for all of them.
struct SimulatedWay {
  enum class Kind : std::uint8_t {
    apart,        ///< each rank for itself
    once_a_node,  ///< what several ranks of a node need, one of them reads: cooperative=True
    once_a_job,   ///< what several ranks need, one of them reads, and sends it to each: cooperative="job"
  };

  Kind kind = Kind::apart;
  double bytes_from_storage = 0;  ///< to all nodes
  double bytes_in_nodes = 0;      ///< from rank to rank, of all nodes
  double bytes_on_wire = 0;       ///< from rank to rank over c10d, counted as if all were between nodes
  double requests = 0;            ///< to the storage, of all nodes

  // Seconds of each phase, on the rank or node that takes longest in it. A load overlaps them.
  double planning = 0, waiting = 0, reading = 0, on_wire = 0, in_nodes = 0, decoding = 0;

  double seconds() const { return planning + waiting + reading + on_wire + in_nodes + decoding; }
};

/// The ways, in the order of SimulatedWay::Kind. Once a job, nodes divide what the job needs evenly, and none
/// sends more than the one that gets most gets. Throws Error(argument) for rates that are not
/// above zero, but the storage's.
std::vector<SimulatedWay> simulated_ways(const Simulation& simulation, const SimulatedRates& rates);

}  // namespace shardwright
