#include "planner/save/global_save_plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_map>

#include "planner/error.h"
#include "planner/problems.h"
#include "planner/save/chunks.h"
#include "planner/save/dealing.h"
#include "planner/save/mesh_layout.h"
#include "planner/save/rank_states.h"

namespace shardwright {
namespace {

/// A description, and the states that refer to it: their position, ascending, and the number of the holding.
struct Group {
  const SavedValues* values = nullptr;
  std::vector<std::pair<std::size_t, std::size_t>> users;
  std::vector<std::uint32_t> global;  ///< for each value its number in the whole job
};

/// Where a value of the job is described.
struct Source {
  std::uint32_t group;
  std::uint32_t value;  ///< index there
};

/// One rank's hold on a box.
struct Occurrence {
  std::uint32_t state;
  std::uint32_t holding;
  std::uint32_t item;
  std::uint64_t corner;  ///< index into the corners of all occurrences
};

class Planning {
 public:
  Planning(const std::vector<RankState>& states, const ValuesByHash& known) : states_(states), known_(known) {
    dealt_.bytes_of_rank.resize(states.size());
    dealt_.left_to_others.resize(states.size());
    dealt_.cuts.resize(states.size());
    for (std::size_t r = 0; r < states.size(); ++r)
      dealt_.left_to_others[r].resize(states[r].holdings.size());
    group_holdings();
    number_values();
  }

  GlobalSavePlan run(const std::function<Dealing(const SavedValues&)>& dealing_of) {
    if (dealing_of) {
      problems_.throw_if_any(ErrorKind::mismatch, "the ranks do not hold one state between them:");
      dealing_ = dealing_of(plan_.metadata.values);
    }
    if (dealing_.bytes_of_element) {
      for (const SavedValue& value : plan_.metadata.values.values)
        bytes_of_element_.push_back(dealing_.bytes_of_element(value));
    }
    for (std::uint32_t g = 0; g < groups_.size(); ++g) {
      if (groups_[g].values->has_mesh()) plan_mesh(g);
    }
    plan_items();
    problems_.throw_if_any(ErrorKind::mismatch, "the ranks do not hold one state between them:");
    deal();
    plan_.bytes_of_rank = std::move(dealt_.bytes_of_rank);
    plan_.left_to_others = std::move(dealt_.left_to_others);
    plan_.cuts = std::move(dealt_.cuts);
    return std::move(plan_);
  }

 private:
  // --- who holds what

  void group_holdings() {
    std::map<Hash, std::uint32_t> number;
    for (std::size_t s = 0; s < states_.size(); ++s) {
      if (!position_of_rank_.emplace(states_[s].rank, s).second)
        problems_.add("rank " + std::to_string(states_[s].rank) + " has sent its state twice");
      for (std::size_t p = 0; p < states_[s].holdings.size(); ++p) {
        const Hash& hash = states_[s].holdings[p].values;
        const auto [entry, is_new] = number.emplace(hash, static_cast<std::uint32_t>(groups_.size()));
        if (is_new) groups_.push_back({known_.at(hash).get(), {}, {}});
        groups_[entry->second].users.emplace_back(s, p);
      }
    }
    problems_.throw_if_any(ErrorKind::mismatch, "the ranks do not hold one state between them:");
  }

  void number_values() {
    std::unordered_map<std::string_view, std::uint32_t> number;
    for (std::uint32_t g = 0; g < groups_.size(); ++g) {
      Group& group = groups_[g];
      for (std::uint32_t v = 0; v < group.values->values.size(); ++v) {
        const SavedValue& value = group.values->values[v];
        const auto [entry, is_new] = number.emplace(value.fqn, static_cast<std::uint32_t>(number.size()));
        const std::uint32_t global = entry->second;
        group.global.push_back(global);
        if (is_new) {
          SavedValue& to = plan_.metadata.values.values.emplace_back(value);
          to.placements.clear();
          sources_.emplace_back();
        } else if (!agree(value_of(global), value)) {
          problems_.add(value.fqn + ": expected " + dtype_and_shape_of(value_of(global)) + " as on " +
                        ranks_text(users_of(sources_[global].front().group)) + ", found " +
                        dtype_and_shape_of(value) + " on " + ranks_text(users_of(g)));
          differs_.push_back(global);
        }
        sources_[global].push_back({g, v});
      }
    }
    std::sort(differs_.begin(), differs_.end());
    plan_.metadata.chunking.assign(number.size(), 0);
  }

  const SavedValue& value_of(std::uint32_t global) const { return plan_.metadata.values.values[global]; }

  bool differs(std::uint32_t global) const {
    return std::binary_search(differs_.begin(), differs_.end(), global);
  }

  std::vector<std::int64_t> users_of(std::uint32_t g) const {
    std::vector<std::int64_t> ranks;
    for (const auto& [state, holding] : groups_[g].users) ranks.push_back(states_[state].rank);
    std::sort(ranks.begin(), ranks.end());
    return ranks;
  }

  std::vector<std::int64_t> holders_of(std::uint32_t global) const {
    std::vector<std::int64_t> ranks;
    for (const Source& source : sources_[global]) {
      const std::vector<std::int64_t> more = users_of(source.group);
      ranks.insert(ranks.end(), more.begin(), more.end());
    }
    return ranks;
  }

  // --- chunks

  /// The number of a chunking that these chunks are; the same one for equal chunks of equal shapes.
  std::uint32_t chunking_number(Chunking chunking, const Shape& shape) {
    std::string key(reinterpret_cast<const char*>(chunking.corners.data()), chunking.corners.size() * 8);
    key.append(reinterpret_cast<const char*>(shape.data()), shape.size() * 8);
    const auto [entry, is_new] =
        chunking_numbers_.emplace(hash_of(key), static_cast<std::uint32_t>(plan_.metadata.chunkings.size()));
    if (is_new) {
      faults_.push_back(fault_of(chunking, shape));
      plan_.metadata.chunkings.push_back(std::move(chunking));
    }
    return entry->second;
  }

  /// Notes what is wrong with a tensor's chunks. `owners_of` gives the ranks that hold a box.
  template <typename OwnersOf>
  void set_chunking(std::uint32_t global, std::uint32_t chunking, const OwnersOf& owners_of) {
    plan_.metadata.chunking[global] = chunking;
    plan_.chunks += plan_.metadata.chunkings[chunking].count();
    const auto& fault = faults_[chunking];
    if (!fault || differs(global)) return;
    std::string line = value_of(global).fqn + ": " + fault->text;
    if (fault->boxes) {
      line += "; " + to_string(fault->boxes->first) + " is on " + ranks_text(owners_of(fault->boxes->first)) +
              ", " + to_string(fault->boxes->second) + " on " + ranks_text(owners_of(fault->boxes->second));
    } else {
      line += "; " + ranks_text(holders_of(global)) + " hold the rest";
    }
    problems_.add(std::move(line));
  }

  // --- values on a mesh

  /// True if every rank of the mesh has described its values so; else notes which have not.
  bool is_complete(std::uint32_t g) {
    const Group& group = groups_[g];
    std::vector<std::int64_t> on_mesh = group.values->mesh_ranks;
    std::sort(on_mesh.begin(), on_mesh.end());
    const std::vector<std::int64_t> users = users_of(g);
    if (users == on_mesh) return true;
    std::vector<std::int64_t> missing;
    std::set_difference(on_mesh.begin(), on_mesh.end(), users.begin(), users.end(),
                        std::back_inserter(missing));
    std::vector<std::int64_t> strange;
    std::set_difference(users.begin(), users.end(), on_mesh.begin(), on_mesh.end(),
                        std::back_inserter(strange));
    std::vector<std::string> names;
    for (const SavedValue& value : group.values->values) {
      // What a missing rank describes otherwise has been told already; what remains it lacks.
      if (sources_[group.global[&value - group.values->values.data()]].size() == 1)
        names.push_back(value.fqn);
    }
    for (const std::string& name : grouped_names(names)) {
      if (!missing.empty())
        problems_.add(name + ": on the mesh of " + ranks_text(on_mesh) + ", but not on " +
                      ranks_text(missing));
      if (!strange.empty())
        problems_.add(name + ": on " + ranks_text(strange) + ", which the mesh does not have");
    }
    incomplete_ = true;
    return false;
  }

  void plan_mesh(std::uint32_t g) {
    if (!is_complete(g)) return;
    const Group& group = groups_[g];
    const SavedValues& values = *group.values;
    std::map<std::pair<Shape, std::vector<std::int64_t>>, std::uint32_t> number;
    std::vector<MeshLayout> lies;
    std::vector<std::uint32_t> chunkings;  // the number of each one's chunks
    std::vector<std::uint32_t> lie_of_value(values.values.size());
    std::vector<std::uint32_t> holding_of_state(states_.size());
    for (const auto& [state, holding] : group.users)
      holding_of_state[state] = static_cast<std::uint32_t>(holding);
    std::vector<std::uint32_t> state_of_place;
    for (const std::int64_t rank : values.mesh_ranks)
      state_of_place.push_back(static_cast<std::uint32_t>(position_of_rank_.at(rank)));
    bool is_alone = true;
    for (std::uint32_t v = 0; v < values.values.size(); ++v) {
      const SavedValue& value = values.values[v];
      std::vector<std::int64_t> key;
      for (const Placement& p : value.placements) {
        key.push_back(static_cast<std::int64_t>(p.kind));
        key.push_back(p.dimension);
        key.push_back(p.split_factor);
      }
      const auto [entry, is_new] =
          number.emplace(std::pair{value.shape, key}, static_cast<std::uint32_t>(lies.size()));
      if (is_new) {
        lies.push_back(layout_on_mesh(values, value));
        chunkings.push_back(chunking_number(std::move(lies.back().chunks), value.shape));
      }
      lie_of_value[v] = entry->second;
      is_alone = is_alone && sources_[group.global[v]].size() == 1;
    }
    if (!is_alone) {
      add_mesh_occurrences(g);
    }
    // Items of each rank are numbered in the order of the values, empty shards left out.
    std::vector<std::uint32_t> next_item(values.mesh_ranks.size(), 0);
    for (std::uint32_t v = 0; v < values.values.size(); ++v) {
      const std::uint32_t global = group.global[v];
      const SavedValue& value = values.values[v];
      const MeshLayout& lie = lies[lie_of_value[v]];
      const bool is_mine = sources_[global].size() == 1;
      const BytesOf bytes_of_value = bytes_of(global);
      const std::uint64_t element_bytes = value.properties.element_bytes;
      if (is_mine) {
        set_chunking(global, chunkings[lie_of_value[v]], [&](const Box& box) {
          std::vector<std::int64_t> owners;
          for (std::uint32_t place = 0; place < values.mesh_ranks.size(); ++place) {
            const std::int64_t rank = values.mesh_ranks[place];
            for (const LocalBox& mine : local_boxes(value.shape, values.mesh_shape,
                                                    coordinate_on_mesh(values, rank), value.placements)) {
              if (mine.global == box) owners.push_back(rank);
            }
          }
          return owners;
        });
      }
      for (std::size_t c = 0; c < lie.places.size(); ++c) {
        if (lie.boxes[c] == 0) continue;
        if (is_mine) {
          plan_.bytes_held +=
              static_cast<std::uint64_t>(lie.elements[c]) * element_bytes * lie.places[c].size();
          add_owners(global, bytes_of_value(lie.elements[c]), lie.places[c].size(), [&](std::size_t i) {
            const std::uint32_t place = lie.places[c][i];
            const std::uint32_t state = state_of_place[place];
            return Owner{state, holding_of_state[state], next_item[place], lie.boxes[c]};
          });
        }
        for (const std::uint32_t place : lie.places[c]) next_item[place] += lie.boxes[c];
      }
    }
  }

  /// Of the group's values that others describe as well: they are looked at box by box.
  void add_mesh_occurrences(std::uint32_t g) {
    const Group& group = groups_[g];
    for (const auto& [state, holding] : group.users)
      add_occurrences(g, state, holding, items_on_mesh(*group.values, states_[state].rank));
  }

  // --- values in items

  void add_occurrences(std::uint32_t g, std::size_t state, std::size_t holding, const SavedItems& items) {
    const Group& group = groups_[g];
    const bool on_mesh = group.values->has_mesh();
    std::size_t corner = 0;
    for (std::uint32_t i = 0; i < items.value.size(); ++i) {
      const std::uint32_t global = group.global[items.value[i]];
      const std::size_t numbers = 2 * group.values->values[items.value[i]].shape.size();
      const bool elsewhere = (on_mesh && sources_[global].size() == 1) || differs(global);
      if (!elsewhere) {
        of_occurrence_.push_back(global);
        occurrences_.push_back(
            {static_cast<std::uint32_t>(state), static_cast<std::uint32_t>(holding), i, corners_.size()});
        corners_.insert(corners_.end(), items.corners.begin() + static_cast<std::ptrdiff_t>(corner),
                        items.corners.begin() + static_cast<std::ptrdiff_t>(corner + numbers));
      }
      corner += numbers;
    }
  }

  void plan_items() {
    for (std::uint32_t g = 0; g < groups_.size(); ++g) {
      if (groups_[g].values->has_mesh()) continue;
      for (const auto& [state, holding] : groups_[g].users)
        add_occurrences(g, state, holding, items_of(state, holding));
    }
    // Occurrences by value, those of one description in the order of the states.
    std::vector<std::size_t> begin(sources_.size() + 1, 0);
    for (const std::uint32_t global : of_occurrence_) ++begin[global + 1];
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    std::vector<std::uint32_t> order(of_occurrence_.size());
    std::vector<std::size_t> next(begin.begin(), begin.end() - 1);
    for (std::uint32_t o = 0; o < of_occurrence_.size(); ++o) order[next[of_occurrence_[o]]++] = o;
    for (std::uint32_t global = 0; global < sources_.size(); ++global) {
      const bool planned =
          sources_[global].size() == 1 && groups_[sources_[global][0].group].values->has_mesh();
      if (planned || differs(global)) continue;
      plan_value(global, order.data() + begin[global], order.data() + begin[global + 1]);
    }
  }

  /// What a rank has named, box by box.
  SavedItems items_of(std::size_t state, std::size_t holding) {
    const RankState::Holding& named = states_[state].holdings[holding];
    try {
      return unpack(named.packed, *known_.at(named.values));
    } catch (const Error& error) {
      throw Error(error.kind, ranks_text({states_[state].rank}) + ": " + error.what());
    }
  }

  void plan_value(std::uint32_t global, std::uint32_t* first, std::uint32_t* last) {
    const SavedValue& value = value_of(global);
    const std::size_t rank = value.shape.size();
    const auto corners = [&](std::uint32_t o) { return corners_.data() + occurrences_[o].corner; };
    const auto before = [&](std::uint32_t a, std::uint32_t b) {
      return comes_before(corners(a), corners(b), rank);
    };
    if (!std::is_sorted(first, last, before)) std::stable_sort(first, last, before);
    Chunking chunking{static_cast<std::uint32_t>(rank), {}};
    chunking.corners.reserve(2 * rank * static_cast<std::size_t>(last - first));
    const BytesOf bytes_of_value = bytes_of(global);
    for (const std::uint32_t* at = first; at != last;) {
      const std::uint32_t* end = at + 1;
      while (end != last && std::equal(corners(*at), corners(*at) + 2 * rank, corners(*end))) ++end;
      const std::uint64_t bytes = bytes_of_box(value, corners(*at) + rank);
      // An empty box is only told of a tensor that has no other.
      const bool is_chunk = bytes != 0 || volume(value.shape) == 0;
      if (is_chunk) chunking.corners.insert(chunking.corners.end(), corners(*at), corners(*at) + 2 * rank);
      plan_.bytes_held += bytes * static_cast<std::uint64_t>(end - at);
      const std::int64_t elements = volume(Shape(corners(*at) + rank, corners(*at) + 2 * rank));
      add_owners(global, bytes_of_value(elements), static_cast<std::size_t>(end - at), [&](std::size_t i) {
        const Occurrence& o = occurrences_[at[i]];
        return Owner{o.state, o.holding, o.item, 1};
      });
      at = end;
    }
    if (value.kind == SavedValue::Kind::object) return;
    if (first == last && rank == 0 && !incomplete_) {
      problems_.add(value.fqn + ": no rank holds it; " + ranks_text(holders_of(global)) + " know of it");
    }
    const std::uint32_t number = chunking_number(std::move(chunking), value.shape);
    if (incomplete_ && faults_[number] && !faults_[number]->boxes) return;  // told, as what a mesh lacks
    set_chunking(global, number, [&](const Box& box) {
      std::vector<std::int64_t> owners;
      for (const std::uint32_t* at = first; at != last; ++at) {
        if (box_at(corners(*at), rank) == box) owners.push_back(states_[occurrences_[*at].state].rank);
      }
      return owners;
    });
  }

  // --- who writes what

  /// What so many elements of a value count for where its bytes are dealt.
  struct BytesOf {
    std::uint64_t of_element;
    std::optional<double> dealt;  ///< in place of these

    std::uint64_t operator()(std::int64_t elements) const {
      if (dealt) return static_cast<std::uint64_t>(std::llround(*dealt * static_cast<double>(elements)));
      return static_cast<std::uint64_t>(elements) * of_element;
    }
  };

  BytesOf bytes_of(std::uint32_t global) const {
    const SavedValue& value = value_of(global);
    if (value.kind == SavedValue::Kind::object) return {0, {}};
    if (bytes_of_element_.empty()) return {value.properties.element_bytes, {}};
    return {0, bytes_of_element_[global]};
  }

  /// What the owners hold, each the same consecutive items, of so many bytes together.
  template <typename OwnerAt>
  void add_owners(std::uint32_t global, std::uint64_t bytes, std::size_t count, const OwnerAt& owner_at) {
    if (count == 1) {
      dealt_.bytes_of_rank[owner_at(0).state] += bytes;
      return;
    }
    const std::uint32_t items = owner_at(0).items;
    if (!dealing_.cut || items == 1) {
      replicas_.push_back({bytes, owners_.size(), count, global});
      for (std::size_t i = 0; i < count; ++i) owners_.push_back(owner_at(i));
      return;
    }
    for (std::uint32_t item = 0; item < items;
         ++item) {  // those that are dealt in parts are dealt one by one
      replicas_.push_back({bytes / items, owners_.size(), count, global});
      for (std::size_t i = 0; i < count; ++i) {
        Owner owner = owner_at(i);
        owner.item += item;
        owner.items = 1;
        owners_.push_back(owner);
      }
    }
  }

  /// The box of an item of a state.
  Box box_of(const Owner& owner) {
    const auto [entry, is_new] = items_of_holding_.try_emplace({owner.state, owner.holding});
    if (is_new) {
      const SavedValues& values = *known_.at(states_[owner.state].holdings[owner.holding].values);
      const SavedItems items = values.has_mesh() ? items_on_mesh(values, states_[owner.state].rank)
                                                 : items_of(owner.state, owner.holding);
      const std::int64_t* corner = items.corners.data();
      for (const std::uint32_t value : items.value) {
        const std::size_t rank = values.values[value].shape.size();
        entry->second.push_back(box_at(corner, rank));
        corner += 2 * rank;
      }
    }
    return entry->second.at(owner.item);
  }

  void deal() {
    if (!dealing_.cut) return deal_whole(std::move(replicas_), owners_, dealing_.to_lowest, dealt_);
    deal_in_parts(
        std::move(replicas_), owners_, [&](const Replicas& one) { return box_of(owners_[one.first_owner]); },
        [&](const Replicas& one, const Box& box) { return dealing_.cut(value_of(one.value), box); }, dealt_);
  }

  const std::vector<RankState>& states_;
  const ValuesByHash& known_;
  std::unordered_map<std::int64_t, std::size_t> position_of_rank_;
  std::vector<Group> groups_;
  std::vector<std::vector<Source>> sources_;  ///< of each value of the job
  std::vector<std::uint32_t> differs_;        ///< values on which ranks do not agree; sorted
  bool incomplete_ = false;                   ///< a mesh lacks ranks
  std::map<Hash, std::uint32_t> chunking_numbers_;
  std::vector<std::optional<ChunkFault>> faults_;  ///< of each chunking
  std::vector<std::uint32_t> of_occurrence_;       ///< for each occurrence its value
  std::vector<Occurrence> occurrences_;
  std::vector<std::int64_t> corners_;
  std::vector<Owner> owners_;
  std::vector<Replicas> replicas_;
  std::map<std::pair<std::uint32_t, std::uint32_t>, std::vector<Box>> items_of_holding_;  // those looked at
  Dealing dealing_;
  std::vector<double> bytes_of_element_;  ///< of each value, as the dealing has it
  Dealt dealt_;
  Problems problems_;
  GlobalSavePlan plan_;
};

}  // namespace

GlobalSavePlan plan_save(const std::vector<RankState>& states, const ValuesByHash& known,
                         const std::function<Dealing(const SavedValues&)>& dealing_of) {
  const std::vector<std::size_t> lost = with_lost_values(states, known);
  if (!lost.empty()) {
    std::vector<std::int64_t> ranks;
    for (const std::size_t s : lost) ranks.push_back(states[s].rank);
    throw Error(ErrorKind::mismatch,
                ranks_text(ranks) + " of " + std::to_string(states.size()) +
                    ": expected a state that has been described, found one that no rank has described");
  }
  return Planning(states, known).run(dealing_of);
}

}  // namespace shardwright
