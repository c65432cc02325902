#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "planner/save/global_save_plan.h"

namespace shardwright {

/// What planning remembers from save to save. Rank 0 remembers more than the others; none need to.
struct SavePlanCache {
  // On every rank: its part of the last plan.
  Hash job{};  ///< of all ranks' states in it
  LeftToOthers left_to_others;

  // On rank 0.
  Hash planned_job{};  ///< of the states that `plan` is for
  std::shared_ptr<const GlobalSavePlan> plan;
  ValuesByHash known;  ///< descriptions in it
};

/// What a rank learns.
struct SavePlanOfRank {
  LeftToOthers left_to_others;
  bool unchanged = false;  ///< nothing but hashes had to be exchanged
};

/// One round over all ranks: gives this rank's bytes and returns its answer; on rank 0 `answers` turns all
/// ranks' bytes into the answers. planner/torch/exchange.h has it for real ranks.
using Answers = std::function<std::vector<std::string>(const std::vector<std::string>&)>;
using Round = std::function<std::string(const std::string& mine, const Answers& answers)>;

/// Plans a save with all other ranks, each of which calls this. The first round moves hashes: of the state,
/// of the last plan, and of each description. If nothing has changed since that plan, it is used again. Else
/// a second round moves the states, and each description from the first rank that has it. On rank 0 the plan
/// is then in the cache. Throws what plan_save throws, on all ranks.
SavePlanOfRank plan_save_together(const RankState& mine, SavePlanCache& cache, const Round& round);

// The steps of it, for those who move the bytes themselves.

std::string introduce(const RankState& mine, const SavePlanCache& cache);
/// On rank 0, for each rank: its plan, "as before", or which descriptions to send along with the state.
std::vector<std::string> ask(const std::vector<std::string>& introductions, SavePlanCache& cache);
/// True if that answer ends it.
bool is_plan(const std::string& answer);
/// The state with the descriptions that were asked for.
std::string state_for(const std::string& answer, const RankState& mine);
/// On rank 0: plans, and answers each rank.
std::vector<std::string> plan_for_all(const std::vector<std::string>& states, SavePlanCache& cache);
SavePlanOfRank understand(const std::string& answer, const RankState& mine, SavePlanCache& cache);

/// What each part of a rank's state holds. The state must bring all its descriptions.
std::vector<SavedItems> items_of(const RankState& state);

/// What a rank writes, from rank 0's bytes about it.
LeftToOthers read_writes(std::string_view bytes, const RankState& mine);

}  // namespace shardwright
