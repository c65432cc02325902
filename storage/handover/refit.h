#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "planner/handover/engine_tensors.h"
#include "planner/handover/refit_plan.h"
#include "planner/job.h"
#include "planner/load/load_plan.h"
#include "storage/handover/node_messages.h"

namespace shardwright {

/// Bytes of a box of an exported tensor, as the trainer's rank has encoded it.
struct GivenBytes {
  ExportedBox part;
  const std::byte* bytes = nullptr;  ///< of its first element
  Shape strides;  ///< elements, or bytes where elements share them, for each dimension of the box
};

/// What a rank does in a hand-over.
struct RefitWork {
  int rank = 0;  ///< this one, among those of the plan
  const RefitPlan& plan;
  const Catalog& catalog;
  const HandedLayers& layers;

  /// Encodes all that this rank gives of a layer, and calls `take`, from any thread, until the bytes of all
  /// of it have been taken. Null where it gives nothing.
  std::function<void(std::uint32_t layer, const std::function<void(const GivenBytes&)>& take)> encode;

  const std::vector<Transfer>& transfers;    ///< of this rank's needs, in their order
  const std::vector<EngineMemory>& tensors;  ///< by Transfer::destination

  /// For what is on the way; beyond them only what a layer of the engine needs.
  std::size_t staging_bytes = 0;

  int threads = 0;  ///< that put a layer in its place; 0: as many as this process may use processors

  /// Of this hand-over on the transport's board, the same on all ranks and no other's.
  std::string name = {};

  /// Called some times a second by the thread that waits; what it throws ends the hand-over on all ranks, if
  /// the transport has a board. May be null.
  std::function<void()> check_for_interrupt = {};

  /// Of the ranks of this one's node, joined for this plan, with which messages go through shared memory.
  /// Null: all of them go by the transport.
  NodeMessages* node = nullptr;
};

/// Runs this rank's part of a plan. A layer of the engine is received in full before any byte of it is put in
/// its place; after a failure, no further one is. All ranks of the plan call it, and each of them comes to an
/// end: one that cannot encode sends what others wait for, marked as void; one that is interrupted tells the
/// others, which then begin nothing more, and complete what they have begun with each other.
RefitOutcome run_refit(const RefitWork& work, const Transport& transport);

}  // namespace shardwright
