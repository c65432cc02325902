#include "planner/save/plan_together.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <sstream>
#include <utility>

#include "planner/error.h"
#include "planner/problems.h"
#include "planner/save/save_wire.h"

namespace shardwright {
namespace {

// What a rank tells, and what it is answered, is one letter, then:
constexpr char state_follows = 's';  // told: the state
constexpr char as_before = 'b';      // told: hashes of the state and of the job; answered: nothing
constexpr char plan_follows = 'p';   // answered: hash of the job, and which items others write
constexpr char no_plan = 'n';        // answered: why, and descriptions, as a Refusal

std::string_view text_of(const Hash& hash) { return {hash.data(), hash.size()}; }

[[noreturn]] void refuse() {
  throw Error(
      ErrorKind::malformed,
      "a message about a save plan has been cut short or is damaged; do all ranks run the same version?");
}

Hash hash_at(std::string_view bytes, std::size_t at) {
  Hash hash;
  if (bytes.size() < at + hash.size()) refuse();
  std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), hash.size(), hash.begin());
  return hash;
}

std::string answer_with(const GlobalSavePlan& plan, const Hash& job, std::size_t rank) {
  return plan_follows + std::string(text_of(job)) + encode(RankWrites{plan.left_to_others[rank]});
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
      refuse();
    }
  }
  return all;
}

std::string refusal(const std::string& why, const std::vector<std::string>& descriptions) {
  RankState carrier;  // a message that holds descriptions
  carrier.values = descriptions;
  const std::string encoded = encode(carrier);
  return no_plan + std::to_string(encoded.size()) + ":" + encoded + why;
}

/// Why some states cannot be planned with, for every rank, and what those ranks should have said.
std::vector<std::string> refuse_lost(const std::vector<RankState>& states,
                                     const std::vector<std::size_t>& lost, const ValuesByHash& known) {
  std::vector<std::int64_t> ranks;
  for (const std::size_t s : lost) ranks.push_back(states[s].rank);
  const std::string why = "the ranks do not hold one state: " + ranks_text(ranks) +
                          (ranks.size() == 1 ? " differs" : " differ") + " from the first of its mesh:";
  std::vector<std::string> answers(states.size(), refusal(why, {}));
  for (const std::size_t s : lost) {
    std::vector<std::string> of_its_meshes;
    for (const auto& [hash, values] : known) {
      const auto& on_mesh = values->mesh_ranks;
      if (std::find(on_mesh.begin(), on_mesh.end(), states[s].rank) != on_mesh.end())
        of_its_meshes.push_back(encode(*values));
    }
    answers[s] = refusal(why, of_its_meshes);
  }
  return answers;
}

/// What a refusal means for this rank.
[[noreturn]] void throw_refusal(std::string_view rest, const RankState& mine) {
  std::size_t size = 0;
  const char* const end = rest.data() + rest.size();
  const auto [colon, fault] = std::from_chars(rest.data(), end, size);
  if (fault != std::errc() || colon == end || *colon != ':') refuse();
  if (size > static_cast<std::size_t>(end - colon - 1)) refuse();
  const std::string_view descriptions(colon + 1, size);
  std::string text(colon + 1 + size, end);
  for (const std::string& bytes : decode_state(descriptions).values) {
    const SavedValues expected = decode_values(bytes);
    for (const std::string& own : mine.values) {
      const SavedValues found = decode_values(own);
      if (!found.has_mesh() || found.mesh_ranks != expected.mesh_ranks) continue;
      for (const std::string& line :
           differences(expected, "rank " + std::to_string(expected.mesh_ranks.front()), found,
                       "rank " + std::to_string(mine.rank)))
        text += "\n  " + line;
    }
  }
  throw Error(ErrorKind::mismatch, text);
}

/// Forgets states that are not those of the last plan, which ranks may still refer to.
void forget_others(SavePlanCache& cache) {
  const std::set<Hash> planned(cache.states_of_ranks.begin(), cache.states_of_ranks.end());
  std::erase_if(cache.states, [&](const auto& entry) { return !planned.contains(entry.first); });
}

std::vector<std::string> answer_all(const std::vector<std::string>& told, SavePlanCache& cache) {
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
    ValuesByHash known = std::exchange(cache.known, {});
    const std::vector<RankState> states = decode_states(encoded, known);
    const std::vector<std::size_t> lost = with_lost_values(states, known);
    if (!lost.empty()) return refuse_lost(states, lost, known);
    cache.plan = std::make_shared<const GlobalSavePlan>(plan_save(states, known));
    std::set<Hash> used;
    for (const RankState& state : states) {
      for (const RankState::Part& part : state.parts) used.insert(part.values);
    }
    std::erase_if(known, [&](const auto& entry) { return !used.contains(entry.first); });
    cache.known = std::move(known);
    cache.states_of_ranks = std::move(all.states);
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

LeftToOthers read_writes(std::string_view bytes, const RankState& mine) {
  std::vector<std::size_t> counts;
  for (const SavedItems& items : items_of(mine)) counts.push_back(items.value.size());
  return decode_writes(bytes, counts).left_to_others;
}

}  // namespace

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

std::vector<std::string> answer(const std::vector<std::string>& told, SavePlanCache& cache) {
  try {
    std::vector<std::string> answers = answer_all(told, cache);
    forget_others(cache);
    return answers;
  } catch (...) {
    forget_others(cache);
    throw;
  }
}

Hash hash_of_job(const std::vector<Hash>& states) {
  std::string text;
  for (const Hash& state : states) text += text_of(state);
  return hash_of(text);
}

bool is_refusal(std::string_view answer) { return answer.starts_with(no_plan); }

SavePlanOfRank understand(const std::string& answer, const RankState& mine, SavePlanCache& cache) {
  if (answer.empty()) refuse();
  const std::string_view rest = std::string_view(answer).substr(1);
  if (answer[0] == as_before && cache.telling == cache.told) return {cache.left_to_others, true};
  cache.told = {};
  if (answer[0] == no_plan) throw_refusal(rest, mine);
  if (answer[0] != plan_follows) refuse();
  const Hash job = hash_at(rest, 0);
  cache.left_to_others = read_writes(rest.substr(sizeof(Hash)), mine);
  cache.job = job;
  cache.told = cache.telling;
  return {cache.left_to_others, false};
}

SavePlanOfRank plan_save_together(const RankState& mine, SavePlanCache& cache, const Round& round) {
  const std::string answered =
      round(tell(told_state(mine), cache),
            [&](const std::vector<std::string>& told) { return answer(told, cache); });
  if (!is_refusal(answered)) return understand(answered, mine, cache);
  // Each rank knows what it has that others have not: one more round, and all know.
  std::string found;
  try {
    understand(answered, mine, cache);
  } catch (const Error& refused) {
    found = refused.what();
  }
  throw Error(ErrorKind::mismatch, round(found, [](const std::vector<std::string>& all) {
                return std::vector<std::string>(all.size(), distinct_lines(all));
              }));
}

std::vector<SavedItems> items_of(const RankState& state, const ValuesByHash& known) {
  std::vector<SavedItems> items;
  for (const RankState::Part& part : state.parts) {
    const SavedValues& values = *known.at(part.values);
    items.push_back(values.has_mesh() ? items_on_mesh(values, state.rank) : unpack(part.packed, values));
  }
  return items;
}

std::vector<SavedItems> items_of(const RankState& state) {
  ValuesByHash known;
  learn_values(state, known);
  return items_of(state, known);
}

}  // namespace shardwright
