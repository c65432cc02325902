#pragma once

#include "planner/handover/transport.h"
#include "planner/torch/exchange.h"

namespace shardwright {

/// Messages between these ranks, over their process group, or over their store where they have none. All of
/// them make one, and use it for one hand-over at a time. `peers.name` is as job_over() has it: another one
/// for each of these over the same store. The store is its board.
Transport transport_over(const Peers& peers);

}  // namespace shardwright
