#include "planner/save/plan_together.h"

#include <algorithm>
#include <functional>
#include <set>
#include <sstream>
#include <utility>

#include "planner/error.h"
#include "planner/save/refusals.h"

namespace shardwright {
namespace {

// What a rank tells, and what it is answered, is one letter, then:
constexpr char state_follows = 's';  // told: the state
constexpr char as_before = 'b';      // told: hashes of the state and of the job; answered: nothing
constexpr char plan_follows = 'p';   // answered: hash of the job, and which items others write
// answered as well: a refusal, see refusals.h

std::string_view text_of(const Hash& hash) { return {hash.data(), hash.size()}; }

Hash hash_at(std::string_view bytes, std::size_t at) {
  Hash hash;
  if (bytes.size() < at + hash.size()) refuse_damaged();
  std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), hash.size(), hash.begin());
  return hash;
}

std::string answer_with(const GlobalSavePlan& plan, const Hash& job, std::size_t rank) {
  return plan_follows + std::string(text_of(job)) + encode(RankWrites{plan.left_to_others[rank], {}});
}

/// Rank 0's view of what all ranks have told.
struct Told {
  std::vector<Hash> states;          ///< of each rank
  std::vector<Hash> jobs;            ///< of the plan that a rank has; nothing where it told its state
  std::vector<std::size_t> strange;  ///< ranks that told a hash which rank 0 does not know
};

Told read_all(const std::vector<std::string>& told, SavePlanCache& cache) {
  Told all;
  for (std::size_t r = 0; r < told.size(); ++r) {
    const std::string_view rest = std::string_view(told[r]).substr(std::min<std::size_t>(1, told[r].size()));
    if (told[r].starts_with(state_follows)) {
      all.states.push_back(hash_of(rest));
      all.jobs.emplace_back();
      cache.states.try_emplace(all.states.back(), rest);
    } else if (told[r].starts_with(as_before)) {
      all.states.push_back(hash_at(rest, 0));
      all.jobs.push_back(hash_at(rest, sizeof(Hash)));
      if (!cache.states.contains(all.states.back())) all.strange.push_back(r);
    } else {
      refuse_damaged();
    }
  }
  return all;
}

/// Forgets states that are not those of the last plan, which ranks may still refer to.
void forget_others(SavePlanCache& cache) {
  if (cache.states.size() == cache.states_of_ranks.size()) return;  // which are known and differ by rank
  const std::set<Hash> planned(cache.states_of_ranks.begin(), cache.states_of_ranks.end());
  std::erase_if(cache.states, [&](const auto& entry) { return !planned.contains(entry.first); });
}

std::vector<std::string> answer_all(const std::vector<std::string>& told, SavePlanCache& cache,
                                    bool to_lowest) {
  Told all = read_all(told, cache);
  if (!all.strange.empty()) {
    std::vector<std::int64_t> ranks(all.strange.begin(), all.strange.end());
    return std::vector<std::string>(
        told.size(), refusal("rank 0 has made no plan with " + ranks_text(ranks) + " yet, which " +
                                 (ranks.size() == 1 ? "has" : "have") +
                                 " told the hash of an earlier one; keep a planner of saves for each process "
                                 "group, and save again",
                             {}));
  }
  const Hash job = hash_of_job(all.states);
  if (!cache.plan || all.states != cache.states_of_ranks) {
    cache.plan = nullptr;
    std::vector<std::string> encoded;
    for (const Hash& state : all.states) encoded.push_back(cache.states.at(state));
    ValuesByHash known = cache.known;  // what a save that fails leaves as it is
    std::vector<RankState> states = decode_states(encoded, known);
    encoded.clear();
    const std::vector<std::size_t> lost = with_lost_values(states, known);
    if (!lost.empty()) return refusals(states, lost, known);
    std::function<Dealing(const SavedValues&)> dealing_of;
    if (to_lowest) dealing_of = [](const SavedValues&) { return Dealing{{}, {}, true}; };
    auto plan = std::make_shared<const GlobalSavePlan>(plan_save(states, known, dealing_of));
    std::set<Hash> used;
    for (const RankState& state : states) {
      for (const RankState::Holding& holding : state.holdings) used.insert(holding.values);
    }
    std::erase_if(known, [&](const auto& entry) { return !used.contains(entry.first); });
    for (std::size_t r = 0; r < states.size(); ++r) {  // descriptions are kept once
      if (states[r].values.empty()) continue;
      states[r].values.clear();
      cache.states[all.states[r]] = encode(states[r]);
    }
    // Together, and after all that may fail: the plan is looked up by these states.
    cache.known = std::move(known);
    cache.states_of_ranks = std::move(all.states);
    cache.plan = std::move(plan);
  }
  std::vector<std::string> answers;
  for (std::size_t r = 0; r < told.size(); ++r)
    answers.push_back(all.jobs[r] == job ? std::string{as_before} : answer_with(*cache.plan, job, r));
  return answers;
}

/// The lines of all texts, each once.
std::string distinct_lines(const std::vector<std::string>& texts) {
  std::string lines;
  std::set<std::string> seen;
  for (const std::string& text : texts) {
    std::istringstream stream(text);
    for (std::string line; std::getline(stream, line);) {
      if (seen.insert(line).second) lines += (lines.empty() ? "" : "\n") + line;
    }
  }
  return lines;
}

}  // namespace

Hash hash_of_job(const std::vector<Hash>& states) {
  std::string text;
  for (const Hash& state : states) text += text_of(state);
  return hash_of(text);
}

std::string told_state(const RankState& mine) {
  RankState state = mine;
  std::erase_if(state.values, [&](const std::string& bytes) {
    const SavedValues values = decode_values(bytes);
    return values.has_mesh() && values.mesh_ranks.front() != mine.rank;
  });
  return encode(state);
}

std::string tell(const std::string& state, SavePlanCache& cache) {
  cache.telling = hash_of(state);
  if (cache.telling != cache.told) return state_follows + state;
  return as_before + std::string(text_of(cache.told)) + std::string(text_of(cache.job));
}

std::vector<std::string> answer(const std::vector<std::string>& told, SavePlanCache& cache, bool to_lowest) {
  try {
    std::vector<std::string> answers = answer_all(told, cache, to_lowest);
    forget_others(cache);
    return answers;
  } catch (...) {
    forget_others(cache);
    throw;
  }
}

SavePlanOfRank understand(const std::string& answer, const RankState& mine, SavePlanCache& cache) {
  if (answer.empty()) refuse_damaged();
  const std::string_view rest = std::string_view(answer).substr(1);
  if (answer[0] == as_before && cache.telling == cache.told) return {cache.left_to_others, true};
  cache.told = {};
  if (is_refusal(answer)) throw_refusal(answer, mine);
  if (answer[0] != plan_follows) refuse_damaged();
  const Hash job = hash_at(rest, 0);
  cache.left_to_others = read_writes(rest.substr(sizeof(Hash)), mine).left_to_others;
  cache.job = job;
  cache.told = cache.telling;
  return {cache.left_to_others, false};
}

SavePlanOfRank plan_save_together(const RankState& mine, SavePlanCache& cache, const Job& job) {
  const std::string answered = round_of(
      job, [&] { return tell(told_state(mine), cache); },
      [&](const std::vector<std::string>& told) { return answer(told, cache); });
  if (!is_refusal(answered)) return understand(answered, mine, cache);
  // Each rank knows what it has that others have not: one more round, and all know.
  std::string found;
  try {
    understand(answered, mine, cache);
  } catch (const Error& refused) {
    found = refused.what();
  }
  throw Error(ErrorKind::mismatch, round_of(
                                       job, [&] { return found; },
                                       [](const std::vector<std::string>& all) {
                                         return std::vector<std::string>(all.size(), distinct_lines(all));
                                       }));
}

}  // namespace shardwright
