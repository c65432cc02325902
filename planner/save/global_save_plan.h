#pragma once

#include <cstdint>
#include <vector>

#include "planner/save/rank_states.h"
#include "planner/save/save_wire.h"

namespace shardwright {

/// What a whole job saves, and who writes what.
struct GlobalSavePlan {
  GlobalMetadata metadata;                   ///< values in the order in which ranks 0, 1, … name them
  std::vector<LeftToOthers> left_to_others;  ///< for each state
  std::vector<std::uint64_t> bytes_of_rank;  ///< that the rank of each state writes, objects not counted
  std::uint64_t bytes_held = 0;              ///< over all ranks, replicas included
  std::size_t chunks = 0;                    ///< in the checkpoint
};

/// Plans a save from the states of all ranks that take part. Each box that several ranks hold is written by
/// the one of its owners that has least to write so far, largest boxes first; the lower rank where several
/// have as little. Which chunks there are does not depend on who writes them.
///
/// Throws one Error(mismatch) that lists all that is wrong, naming tensors and ranks: a description that no
/// rank has sent, ranks that differ in dtype or shape of a tensor, boxes that overlap, elements that no rank
/// holds, and ranks of a mesh that are missing. Error(malformed) for items outside their tensors.
///
/// Takes time linear in the number of items, but for sorting those of a tensor, and for values on a mesh
/// linear in ranks times ways of lying on it.
GlobalSavePlan plan_save(const std::vector<RankState>& states, const ValuesByHash& known);

}  // namespace shardwright
