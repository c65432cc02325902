#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "planner/job.h"
#include "planner/save/global_save_plan.h"
#include "planner/save/refusals.h"

namespace shardwright {

/// What planning remembers from save to save. Rank 0 remembers more than the others; none need to.
struct SavePlanCache {
  // On every rank: its part of the last plan.
  Hash telling{};  ///< of the state that was told last
  Hash told{};     ///< of the state that the plan is for
  Hash job{};      ///< of all ranks' states in it
  LeftToOthers left_to_others;

  // On rank 0, of the last plan.
  std::vector<Hash> states_of_ranks;
  std::map<Hash, std::string> states;  ///< by the hash of what was told, without descriptions
  std::shared_ptr<const GlobalSavePlan> plan;
  ValuesByHash known;  ///< descriptions in it
};

/// What a rank learns.
struct SavePlanOfRank {
  LeftToOthers left_to_others;
  bool unchanged = false;  ///< nothing but hashes had to be exchanged
};

// The protocol of a save is one round: every rank tells rank 0 its state, or the hash of one that it told
// before; rank 0 answers each with its part of the plan, or that it is as before.
// torch.distributed.checkpoint moves these bytes as plans of ranks, planner/torch/exchange.h without it.

/// What goes to rank 0 of a state: a description of tensors on a mesh goes with the mesh's first rank alone.
std::string told_state(const RankState& mine);

/// This rank's part of the round; `state` as told_state() gives it.
std::string tell(const std::string& state, SavePlanCache& cache);

/// On rank 0: plans, unless all is as it was, and answers each rank. Throws what plan_save() throws, and
/// Error(malformed) that names the ranks whose bytes are damaged. Where descriptions are missing or ranks
/// tell hashes that rank 0 does not know, no answer holds a plan: understand() throws on each rank.
/// `to_lowest` as in Dealing, the same in each save with a cache.
std::vector<std::string> answer(const std::vector<std::string>& told, SavePlanCache& cache,
                                bool to_lowest = false);

/// Of the states of all ranks, in their order.
Hash hash_of_job(const std::vector<Hash>& states);

/// What this rank, which holds all of `mine`, is to write. Throws as throw_refusal() for a refusal.
SavePlanOfRank understand(const std::string& answer, const RankState& mine, SavePlanCache& cache);

/// Plans a save with all other ranks, each of which calls this. Throws what plan_save() and understand()
/// throw, the same on all ranks. Takes one round of the job, and one more before a refusal is thrown.
SavePlanOfRank plan_save_together(const RankState& mine, SavePlanCache& cache, const Job& job);

}  // namespace shardwright
