#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "planner/save/rank_states.h"
#include "planner/save/save_wire.h"

namespace shardwright {

/// What a whole job saves, and who writes what.
struct GlobalSavePlan {
  GlobalMetadata metadata;                   ///< values in the order in which ranks 0, 1, … name them
  std::vector<LeftToOthers> left_to_others;  ///< for each state
  std::vector<std::vector<ItemCut>> cuts;    ///< for each state; none where boxes are written whole
  std::vector<std::uint64_t> bytes_of_rank;  ///< that the rank of each state writes, objects not counted
  std::uint64_t bytes_held = 0;              ///< over all ranks, replicas included
  std::size_t chunks = 0;                    ///< in the checkpoint
};

/// How that is dealt out which several ranks hold.
struct Dealing {
  /// Bytes of the result that an element of a value takes; asked once for each value. Null: those that it
  /// takes in memory.
  std::function<double(const SavedValue&)> bytes_of_element;

  /// The dimension along which a large box of a tensor may be cut, so that several of its owners write a
  /// slice of it each. Null: each box is written whole, and which chunks there are does not depend on who
  /// writes them.
  std::function<std::size_t(const SavedValue&, const Box&)> cut;

  /// Whether each box is written by the lowest of its owners, however much that one has to write. Not with
  /// `cut`.
  bool to_lowest = false;
};

/// Plans a save from the states of all ranks that take part. Each box that several ranks hold is written by
/// the one of its owners that has least to write so far, largest boxes first; the lower rank where several
/// have as little; see Dealing for others.
///
/// Throws one Error(mismatch) that tells what is wrong, naming tensors and ranks: a description that no
/// rank has sent, ranks that differ in dtype or shape of a tensor, boxes that overlap, elements that no rank
/// holds, and ranks of a mesh that are missing. Error(malformed) for items outside their tensors.
///
/// Takes time linear in the number of items, but for sorting those of a tensor, and for values on a mesh
/// linear in ranks times ways of lying on it.
///
/// `dealing_of`, if there is one, is called with all values of the job once ranks agree on them.
GlobalSavePlan plan_save(const std::vector<RankState>& states, const ValuesByHash& known,
                         const std::function<Dealing(const SavedValues&)>& dealing_of = {});

}  // namespace shardwright
