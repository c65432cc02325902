#include "planner/save/rank_states.h"

#include <algorithm>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "planner/error.h"
#include "planner/names/torch_dtypes.h"
#include "planner/problems.h"
#include "planner/save/chunks.h"

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
    if (!std::all_of(states[s].holdings.begin(), states[s].holdings.end(),
                     [&](const RankState::Holding& holding) { return known.contains(holding.values); })) {
      lost.push_back(s);
    }
  }
  return lost;
}

std::vector<SavedItems> items_of(const RankState& state, const ValuesByHash& known) {
  std::vector<SavedItems> items;
  for (const RankState::Holding& holding : state.holdings) {
    const SavedValues& values = *known.at(holding.values);
    items.push_back(values.has_mesh() ? items_on_mesh(values, state.rank) : unpack(holding.packed, values));
  }
  return items;
}

std::vector<SavedItems> items_of(const RankState& state) {
  ValuesByHash known;
  learn_values(state, known);
  return items_of(state, known);
}

RankState state_of(const std::vector<TensorSpec>& specs, std::int64_t rank) {
  SavedValues values;
  std::unordered_map<std::string_view, std::size_t> number;
  std::vector<std::vector<Box>> boxes;
  for (const TensorSpec& spec : specs) {
    const auto [entry, is_new] = number.emplace(spec.fqn, values.values.size());
    if (is_new) {
      SavedValue& value = values.values.emplace_back();
      value.fqn = spec.fqn;
      value.properties.dtype = torch_name_of(spec.dtype);
      value.properties.element_bytes = static_cast<std::uint32_t>(bytes_of(spec.dtype));
      value.shape = spec.global_shape;
      boxes.emplace_back();
      if (volume(spec.global_shape) == 0)
        boxes.back() = {whole(spec.global_shape)};  // somebody has to name it
    }
    for (const LocalBox& local : spec.boxes) {
      if (!is_empty(local.global)) boxes[entry->second].push_back(local.global);
    }
  }
  SavedItems items;
  for (std::size_t v = 0; v < boxes.size(); ++v) {
    for (const Box& box : boxes[v]) items.add(static_cast<std::uint32_t>(v), box.offset, box.size);
  }
  RankState state;
  state.rank = rank;
  state.values = {encode(values)};
  state.holdings = {{hash_of(state.values.front()), pack(items, values)}};
  return state;
}

RankWrites read_writes(std::string_view bytes, const RankState& mine) {
  std::vector<std::size_t> counts;
  for (const SavedItems& items : items_of(mine)) counts.push_back(items.value.size());
  return decode_writes(bytes, counts);
}

void each_written(const RankState& mine, const ValuesByHash& known, const RankWrites& writes,
                  const std::function<void(const SavedValue&, const Box&)>& found) {
  const std::vector<SavedItems> held = items_of(mine, known);
  std::map<std::pair<std::uint32_t, std::uint32_t>, const ItemCut*> cut_of_item;
  for (const ItemCut& cut : writes.cuts) cut_of_item[{cut.holding, cut.item}] = &cut;
  for (std::uint32_t h = 0; h < held.size(); ++h) {
    const SavedValues& values = *known.at(mine.holdings[h].values);
    const std::vector<std::uint32_t>& left = writes.left_to_others.at(h);
    const std::int64_t* corner = held[h].corners.data();
    for (std::uint32_t i = 0; i < held[h].value.size(); ++i) {
      const SavedValue& value = values.values[held[h].value[i]];
      const std::size_t rank = value.shape.size();
      Box box = box_at(corner, rank);
      corner += 2 * rank;
      if (std::binary_search(left.begin(), left.end(), i)) continue;
      if (const auto cut = cut_of_item.find({h, i}); cut != cut_of_item.end()) {
        const auto& [holding, item, dimension, begin, size] = *cut->second;
        if (dimension >= rank || begin > box.size[dimension] || size > box.size[dimension] - begin) {
          throw Error(ErrorKind::malformed,
                      value.fqn +
                          ": this rank is to write a slice that it does not hold; do all "
                          "ranks run the same version of shardwright?");
        }
        box.offset[dimension] += begin;
        box.size[dimension] = size;
      }
      found(value, box);
    }
  }
}

std::vector<WrittenBox> boxes_to_write(const RankState& mine, const RankWrites& writes) {
  ValuesByHash known;
  learn_values(mine, known);
  std::vector<WrittenBox> boxes;
  each_written(mine, known, writes, [&](const SavedValue& value, const Box& box) {
    boxes.push_back({value.fqn, box});
  });
  return boxes;
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
