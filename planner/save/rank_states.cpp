#include "planner/save/rank_states.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "planner/error.h"
#include "planner/problems.h"

namespace shardwright {

std::string ranks_text(std::vector<std::int64_t> ranks) {
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  return (ranks.size() == 1 ? "rank " : "ranks ") + ranges_of(ranks);
}

std::string dtype_and_shape_of(const SavedValue& value) {
  if (value.kind == SavedValue::Kind::object) return "an object";
  return value.properties.dtype + " " + to_string(value.shape);
}

bool agree(const SavedValue& a, const SavedValue& b) {
  const bool a_is_object = a.kind == SavedValue::Kind::object;
  return a_is_object == (b.kind == SavedValue::Kind::object) &&
         (a_is_object || (a.shape == b.shape && a.properties.dtype == b.properties.dtype &&
                          a.properties.element_bytes == b.properties.element_bytes));
}

void learn_values(const RankState& state, ValuesByHash& known) {
  for (const std::string& bytes : state.values) {
    const Hash hash = hash_of(bytes);
    if (!known.contains(hash)) known.emplace(hash, std::make_shared<SavedValues>(decode_values(bytes)));
  }
}

std::vector<RankState> decode_states(const std::vector<std::string>& encoded, ValuesByHash& known) {
  std::vector<RankState> states;
  states.reserve(encoded.size());
  Problems problems;
  for (std::size_t r = 0; r < encoded.size(); ++r) {
    try {
      states.push_back(decode_state(encoded[r]));
      learn_values(states.back(), known);
    } catch (const Error& error) {
      problems.add("rank " + std::to_string(r) + ": " + error.what());
    }
  }
  problems.throw_if_any(ErrorKind::malformed, "the states of some ranks cannot be read:");
  return states;
}

std::vector<std::size_t> with_lost_values(const std::vector<RankState>& states, const ValuesByHash& known) {
  std::vector<std::size_t> lost;
  for (std::size_t s = 0; s < states.size(); ++s) {
    if (!std::all_of(states[s].parts.begin(), states[s].parts.end(),
                     [&](const RankState::Part& part) { return known.contains(part.values); })) {
      lost.push_back(s);
    }
  }
  return lost;
}

std::vector<std::string> differences(const SavedValues& expected, const std::string& expected_by,
                                     const SavedValues& found, const std::string& found_by) {
  std::map<std::string_view, const SavedValue*> by_name;
  for (const SavedValue& value : expected.values) by_name.emplace(value.fqn, &value);
  std::vector<std::string> lines;
  const auto tell = [&](const std::string& fqn, const std::string& there, const std::string& here) {
    lines.push_back(fqn + ": expected " + there + " as on " + expected_by + ", found " + here + " on " +
                    found_by);
  };
  for (const SavedValue& value : found.values) {
    const auto other = by_name.extract(value.fqn);
    if (other.empty()) {
      tell(value.fqn, "no such tensor", dtype_and_shape_of(value));
    } else if (!agree(*other.mapped(), value)) {
      tell(value.fqn, dtype_and_shape_of(*other.mapped()), dtype_and_shape_of(value));
    } else if (other.mapped()->placements != value.placements) {
      tell(value.fqn, "other placements on the mesh", "these");
    }
  }
  for (const auto& [fqn, value] : by_name)
    tell(std::string(fqn), dtype_and_shape_of(*value), "no such tensor");
  if (lines.empty() && expected != found) {
    lines.push_back(found_by + ": expected the tensors in the order and with the properties of " +
                    expected_by + ", found others");
  }
  return lines;
}

}  // namespace shardwright
