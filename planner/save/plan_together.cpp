#include "planner/save/plan_together.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "planner/error.h"

namespace shardwright {
namespace {

// An introduction is the hash of the state, that of the job of the last plan, and those of the descriptions.
// An answer is one letter, then:
constexpr char as_before = 'b';  // nothing
constexpr char send =
    's';  // a number of 4 bytes for each description to send, its place in RankState::values
constexpr char plan = 'p';  // the hash of the job, and which items others write

constexpr std::size_t hash_bytes = sizeof(Hash);

std::string_view text_of(const Hash& hash) { return {hash.data(), hash.size()}; }

[[noreturn]] void refuse() {
  throw Error(
      ErrorKind::malformed,
      "a message about a save plan has been cut short or is damaged; do all ranks run the same version?");
}

Hash hash_at(std::string_view bytes, std::size_t number) {
  if (bytes.size() < (number + 1) * hash_bytes) refuse();
  Hash hash;
  std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(number * hash_bytes), hash_bytes, hash.begin());
  return hash;
}

std::string answer_with(const GlobalSavePlan& global, const Hash& job, std::size_t rank) {
  return plan + std::string(text_of(job)) + encode(RankWrites{global.left_to_others[rank], {}});
}

}  // namespace

std::string introduce(const RankState& mine, const SavePlanCache& cache) {
  std::string introduction(text_of(hash_of(encode(mine))));
  introduction += text_of(cache.job);
  for (const std::string& values : mine.values) introduction += text_of(hash_of(values));
  return introduction;
}

std::vector<std::string> ask(const std::vector<std::string>& introductions, SavePlanCache& cache) {
  std::string all_states;
  for (const std::string& introduction : introductions) all_states += text_of(hash_at(introduction, 0));
  const Hash job = hash_of(all_states);
  std::vector<std::string> answers;
  const bool is_planned = cache.plan && job == cache.planned_job;
  std::set<Hash> wanted;
  for (std::size_t r = 0; r < introductions.size(); ++r) {
    if (is_planned) {
      const bool has_it = hash_at(introductions[r], 1) == job;
      answers.push_back(has_it ? std::string{as_before} : answer_with(*cache.plan, job, r));
      continue;
    }
    std::string& answer = answers.emplace_back(1, send);
    for (std::uint32_t i = 0; i + 2 < introductions[r].size() / hash_bytes; ++i) {
      const Hash hash = hash_at(introductions[r], i + 2);
      if (cache.known.contains(hash) || !wanted.insert(hash).second) continue;
      for (int byte = 0; byte < 4; ++byte) answer += static_cast<char>(i >> 8 * byte & 255);
    }
  }
  if (!is_planned) cache.plan = nullptr;
  cache.planned_job = job;
  return answers;
}

bool is_plan(const std::string& answer) {
  if (answer.empty()) refuse();
  return answer[0] != send;
}

std::string state_for(const std::string& answer, const RankState& mine) {
  RankState state = mine;
  state.values.clear();
  for (std::size_t at = 1; at + 4 <= answer.size(); at += 4) {
    std::uint32_t i = 0;
    for (std::size_t byte = 0; byte < 4; ++byte)
      i |= std::uint32_t{static_cast<unsigned char>(answer[at + byte])} << 8 * byte;
    if (i >= mine.values.size()) refuse();
    state.values.push_back(mine.values[i]);
  }
  return encode(state);
}

std::vector<std::string> plan_for_all(const std::vector<std::string>& states, SavePlanCache& cache) {
  const std::vector<RankState> decoded = decode_states(states, cache.known);
  cache.plan = std::make_shared<const GlobalSavePlan>(plan_save(decoded, cache.known));
  std::set<Hash> used;
  for (const RankState& state : decoded) {
    for (const RankState::Part& part : state.parts) used.insert(part.values);
  }
  std::erase_if(cache.known, [&](const auto& entry) { return !used.contains(entry.first); });
  std::vector<std::string> answers;
  for (std::size_t r = 0; r < states.size(); ++r)
    answers.push_back(answer_with(*cache.plan, cache.planned_job, r));
  return answers;
}

std::vector<SavedItems> items_of(const RankState& state) {
  ValuesByHash known;
  learn_values(state, known);
  std::vector<SavedItems> items;
  for (const RankState::Part& part : state.parts) {
    const SavedValues& values = *known.at(part.values);
    items.push_back(values.has_mesh() ? items_on_mesh(values, state.rank) : unpack(part.packed, values));
  }
  return items;
}

LeftToOthers read_writes(std::string_view bytes, const RankState& mine) {
  std::vector<std::size_t> counts;
  for (const SavedItems& items : items_of(mine)) counts.push_back(items.value.size());
  return decode_writes(bytes, counts).left_to_others;
}

SavePlanOfRank understand(const std::string& answer, const RankState& mine, SavePlanCache& cache) {
  if (answer.empty() || (answer[0] != as_before && answer[0] != plan)) refuse();
  if (answer[0] == as_before) return {cache.left_to_others, true};
  const std::string_view rest = std::string_view(answer).substr(1);
  const Hash job = hash_at(rest, 0);
  cache.left_to_others = read_writes(rest.substr(hash_bytes), mine);
  cache.job = job;
  return {cache.left_to_others, false};
}

SavePlanOfRank plan_save_together(const RankState& mine, SavePlanCache& cache, const Round& round) {
  std::string answer =
      round(introduce(mine, cache), [&](const std::vector<std::string>& all) { return ask(all, cache); });
  if (!is_plan(answer)) {
    answer = round(state_for(answer, mine),
                   [&](const std::vector<std::string>& all) { return plan_for_all(all, cache); });
  }
  return understand(answer, mine, cache);
}

}  // namespace shardwright
