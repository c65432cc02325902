#pragma once

#include <chrono>
#include <string>
#include <torch/csrc/distributed/c10d/Store.hpp>

namespace shardwright {

/// Lets the ranks of a job tell each other whether they can go on, before any of them writes: every rank
/// calls this with what is wrong on it (empty: nothing). Returns on all ranks if nothing is wrong on any;
/// otherwise throws the same Error(mismatch) on all of them, which names each rank concerned with its
/// problem.
///
/// Needs no process group: `store` is any c10d store that the ranks share (TCPStore, FileStore, HashStore).
/// `name` must be the same on all ranks and new for each agreement made over that store. Throws Error(io),
/// naming the ranks, if some have not come within `timeout`.
void agree(c10d::Store& store, int rank, int ranks, const std::string& name, const std::string& problem,
           std::chrono::milliseconds timeout = std::chrono::minutes(5));

}  // namespace shardwright
