#pragma once

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "planner/job.h"

namespace shardwright {

/// The ranks of a job, and what they reach each other by: any c10d store that they share (TCPStore,
/// FileStore, HashStore), and a process group that moves CPU tensors, if there is one.
struct Peers {
  int rank = 0;
  int ranks = 1;
  c10::intrusive_ptr<c10d::Store> store;  ///< over which ranks meet, and bytes go where there is no group
  c10::intrusive_ptr<c10d::ProcessGroup> group;  ///< over which bytes go; may be null
  std::string name;  ///< of what is exchanged: the same on all ranks, and new each time over the same store
  std::chrono::milliseconds timeout = std::chrono::minutes(5);
};

/// The peers of a process group, which must have a store and a backend for CPU tensors (Gloo).
Peers peers_of(const c10::intrusive_ptr<c10d::ProcessGroup>& group, std::string name,
               std::chrono::milliseconds timeout = std::chrono::minutes(5));

/// The job of these ranks. Keep one for the life of the process: it counts its rounds, so that each has a
/// name of its own over the store. `peers.name` must be the same on all ranks, and another one for each job
/// over the same store. `peers.timeout` is how long ranks wait for each other, which has to be longer than
/// one may be ahead of another in reading or writing its part. One thread at a time may use it.
Job job_over(Peers peers);

/// Messages between these ranks, over their process group, or over their store where they have none. All of
/// them make one, and use it for one hand-over at a time. `peers.name` is as job_over() has it: another one
/// for each of these over the same store. The store is its board.
Transport transport_over(const Peers& peers);

}  // namespace shardwright
