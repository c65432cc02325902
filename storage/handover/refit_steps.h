#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "planner/handover/engine_tensors.h"
#include "planner/handover/refit_plan.h"
#include "planner/save/saved_values.h"
#include "storage/handover/node_messages.h"
#include "storage/write/described_export.h"
#include "storage/write/encode_tasks.h"
#include "storage/write/export_share.h"
#include "storage/write/export_tasks.h"

namespace shardwright {

/// A hand-over that is planned: what this rank sends and receives, as long as nothing but values changes.
struct PlannedRefit {
  RefitPlan plan;
  Hash key = {};      ///< digest of what it was planned from, on all ranks; zeros: there is no plan
  std::string share;  ///< what this rank encodes; see plan_export()

  /// Whether this rank has to tell of values each time: scales of blocks that ranks cut, magnitudes that all
  /// values have a say in.
  bool tells_values = false;

  std::shared_ptr<const DescribedExport> described;
  HandedLayers layers;
  std::vector<Transfer> transfers;  ///< into this rank's part of the engine

  std::vector<std::string> nodes;    ///< of the ranks, see RefitOptions::node
  std::optional<JoinedNode> joined;  ///< nothing until they have tried, and where they have to again
  std::uint64_t joined_in = 0;       ///< number of the hand-over in which they did; 0: in none
  int joined_by = 0;                 ///< process that did: what it shares, a child of it does not
};

/// Begins to plan: settles where this rank's tensors of an engine come from. Throws as transfers_into().
PlannedRefit begin_plan(DescribedExport described, const std::vector<EngineTensor>& engine,
                        std::size_t message_bytes);

/// What an encoded box is a box of, in words of a plan.
ExportedBox exported_box(const EncodedBox& encoded, const Catalog& catalog);

/// All that a rank of the trainer encodes; `work` is the tasks of its share.
std::vector<ExportedBox> given_by(const ExportTasks& work, const PartsToWrite& parts,
                                  const ExportLayout& layout);

/// The small tensors among them that it gives whole: copies of the template's, and what the export makes.
std::vector<std::uint32_t> given_whole(const PartsToWrite& parts, const ExportLayout& layout);

/// Plans what this rank, which encodes `given`, sends. `needs` are what the ranks have told (encode_needs()),
/// by rank; empty: a rank needs nothing. Returns what each rank is to be told: see plan_receives().
std::vector<std::string> plan_sends(int rank, std::vector<ExportedBox> given,
                                    const std::vector<std::string>& needs, PlannedRefit& planned);

/// Plans what this rank receives, by what each rank has told it, and proves that it is all. Throws as
/// expect_all(), Error(malformed) for what no rank can have meant.
void plan_receives(const std::vector<std::string>& told, PlannedRefit& planned);

}  // namespace shardwright
