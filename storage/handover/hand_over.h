#pragma once

#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "planner/handover/engine_tensors.h"
#include "planner/handover/refit_plan.h"
#include "planner/job.h"
#include "planner/names/tensor_spec.h"
#include "planner/save/rank_states.h"
#include "storage/handover/refit.h"
#include "storage/handover/refit_steps.h"
#include "storage/write/export.h"

namespace shardwright {

/// What a rank brings to a hand-over. It may be the trainer's, the engine's, both or neither.
struct RefitSide {
  const std::vector<TensorSpec>* specs =
      nullptr;                       ///< of the trainer's tensors; null: it is none of its ranks
  const RankState* state = nullptr;  ///< of them; see describe_export()
  std::vector<EngineTensor> engine;
  std::vector<EngineMemory> memory;  ///< of each of them

  /// checked_digest_of_side(), of a caller that keeps the side and the request as they are; empty: made anew
  /// each time.
  std::string digest = {};
};

struct RefitOptions {
  /// Memory for what is on the way, both directions together. A layer of the engine is received in full
  /// before it is put in its place: one that has no room in this is given what it takes. The same on all
  /// ranks.
  std::size_t staging_bytes = std::size_t{120} << 20;

  int threads = 0;             ///< of this rank; 0: as many as this process may use processors
  DeviceOptions devices = {};  ///< for the trainer's tensors on CUDA devices

  /// Called some times a second by the calling thread while weights are on the way. What it throws ends the
  /// hand-over on all ranks, where the transport has a board. May be null.
  std::function<void()> check_for_interrupt = {};

  /// Ranks that give the same hand over through memory that they share: this_node(). Empty: all that this
  /// rank sends or gets goes by the transport.
  std::string node = {};

  /// How long a rank waits where another one of its node does nothing.
  std::chrono::milliseconds timeout = std::chrono::minutes(30);
};

/// Plans a hand-over and runs it: the engine's tensors become what an export of the trainer's would hold, by
/// the same request, bit for bit. All ranks of the job call it; `transport` speaks of the job's ranks.
/// `planned` is what this rank keeps from one to the next, empty at first: planning is left out while all
/// ranks describe what they did.
///
/// Throws the same Error on all ranks, before anything is sent, where the two sides do not fit each other or
/// values cannot be encoded as far as that is known by then: mismatch that tells what is wrong by name.
/// What goes wrong later is in the outcome of the ranks that met it, and says which layers of this rank's
/// engine are new.
RefitOutcome hand_over(const Job& job, const RefitSide& side, const ExportRequest& request,
                       PlannedRefit& planned, const Transport& transport, const RefitOptions& options = {});

/// The first half of it: makes sure that `planned` is what the ranks describe now. Returns whether it was
/// already. Collective, as the other half, which needs the values.
bool plan_refit_together(const Job& job, const RefitSide& side, const ExportRequest& request,
                         PlannedRefit& planned, const RefitOptions& options = {});

}  // namespace shardwright
