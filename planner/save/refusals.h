#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/save/rank_states.h"

namespace shardwright {

// What rank 0 answers where there is no plan: why, and for a rank that differs from others what they have
// described. The rank itself then says in what it differs.

std::string refusal(const std::string& why, const std::vector<std::string>& descriptions = {});

/// For each rank: these states refer to descriptions that no rank has told.
std::vector<std::string> refusals(const std::vector<RankState>& states, const std::vector<std::size_t>& lost,
                                  const ValuesByHash& known);

bool is_refusal(std::string_view answer);

/// Throws Error(mismatch) that says why there is no plan, with a line for each tensor in which this rank,
/// which holds all of `mine`, differs from the first of its mesh; Error(malformed) for an answer that is no
/// refusal.
[[noreturn]] void throw_refusal(std::string_view answer, const RankState& mine);

/// Throws Error(malformed): what ranks tell each other of a save cannot be read.
[[noreturn]] void refuse_damaged();

}  // namespace shardwright
