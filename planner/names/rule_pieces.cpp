#include "planner/names/rule_pieces.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/companions.h"
#include "planner/names/packed_tensors.h"
#include "planner/names/resolved_axes.h"

namespace shardwright {
namespace {

std::string replace_prefix(std::string_view name, std::string_view from, std::string_view to) {
  return std::string(to) + std::string(name.substr(from.size()));
}

bool fits_any(const std::vector<NamePattern>& patterns, std::string_view name) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const NamePattern& pattern) { return pattern.match(name).has_value(); });
}

/// The first row that has an HF tensor of this name, in the rules' spelling; null if there is none.
const Rule* rule_of_hf(const WeightMap& map, std::string_view name) {
  const auto rule = std::find_if(map.rules.begin(), map.rules.end(),
                                 [&](const Rule& candidate) { return candidate.hf.match(name).has_value(); });
  return rule == map.rules.end() ? nullptr : &*rule;
}

/// The rows that share the first fitting row's native pattern: w1 and w3 both go into gate_and_up_projs.
std::vector<const Rule*> rules_of(const WeightMap& map, const std::string& fqn, Captures& captures) {
  std::vector<const Rule*> rules;
  for (const Rule& rule : map.rules) {
    if (rules.empty()) {
      if (std::optional<Captures> found = rule.native.match(fqn)) {
        captures = *found;
        rules.push_back(&rule);
      }
    } else if (rule.native.text() == rules.front()->native.text()) {
      rules.push_back(&rule);
    }
  }
  return rules;
}

/// The pieces of a tensor that holds what files do.
std::vector<Piece> packed_pieces(const PackedTensor& tensor, const Shape& native_shape) {
  if (tensor.native.shape != native_shape) {
    throw Error(ErrorKind::mismatch, tensor.native.fqn + ": expected " +
                                         std::string(name_of(tensor.native.dtype)) + " of shape " +
                                         to_string(tensor.native.shape) + ", which holds " + tensor.weight +
                                         " packed, found shape " + to_string(native_shape));
  }
  return tensor.pieces;
}

}  // namespace

bool Piece::is_plain() const {
  return shardwright::is_plain(correspondence->hf_view) && shardwright::is_plain(correspondence->native_view);
}

bool knows_native(const WeightMap& map, std::string_view fqn) {
  return std::any_of(map.rules.begin(), map.rules.end(),
                     [&](const Rule& rule) { return rule.known && rule.native.match(fqn).has_value(); });
}

std::vector<Placed> placed_in(const Piece& piece, const Box& native) {
  return placed_in(*piece.correspondence, piece.native_box, native);
}

Box hull_of(const Piece& piece) {
  return is_plain(piece.correspondence->native_view)
             ? piece.native_box
             : hull_of(piece.correspondence->native_view, piece.native_box);
}

std::vector<int> dimensions_of(const Piece& piece) {
  constexpr int unknown = -2;
  const Correspondence& of = *piece.correspondence;
  std::vector<int> dimensions(piece.hf_shape.size(), unknown);
  for (std::size_t i = 0; i < of.axes.size(); ++i) {
    if (of.axes[i] < 0) continue;
    const int native = of.native_view.dimensions[static_cast<std::size_t>(of.axes[i])];
    int& dimension = dimensions[static_cast<std::size_t>(of.hf_view.dimensions[i])];
    dimension = dimension == unknown || dimension == native ? native : -1;
  }
  std::replace(dimensions.begin(), dimensions.end(), unknown, -1);
  return dimensions;
}

bool may_touch(const Piece& piece, const Box& native) {
  if (is_plain(piece.correspondence->native_view)) return intersects(piece.native_box, native);
  return intersects(hull_of(piece), native);
}

std::vector<Piece> pieces_of(const WeightMap& map, const std::string& fqn, const Shape& native_shape,
                             const Catalog* catalog) {
  if (map.packed != nullptr) {
    const auto packed = map.packed->tensors.find(fqn);
    if (packed != map.packed->tensors.end()) return packed_pieces(packed->second, native_shape);
  }
  Captures captures;
  const std::vector<const Rule*> rules = rules_of(map, fqn, captures);
  std::vector<Piece> pieces;
  if (rules.empty()) return pieces;
  // "All else keeps its name" is no second way to a tensor that a row above gives another name.
  if (!rules.front()->known) {
    Captures of_first = captures;
    if (rules.front()->stacked()) of_first.expert = 0;
    if (rules.front()->axes.counts_shards()) of_first.shard = 0;
    const Rule& first = *rule_of_hf(map, rules.front()->hf.fill(of_first));
    if (first.hf.text() != rules.front()->hf.text()) return pieces;
  }
  std::vector<AxisExpression::Resolved> resolved;
  std::vector<std::shared_ptr<const Correspondence>> correspondences;
  std::int64_t experts = 1;
  for (const Rule* rule : rules) {
    std::optional<Shape> hf_shape;
    if (rule->stacked()) captures.expert = 0;
    if (rule->axes.counts_shards()) captures.shard = 0;
    if (catalog != nullptr && rule->axes.needs_hf_shape())
      hf_shape = catalog->shape_of(to_checkpoint_spelling(map.dialect, rule->hf.fill(captures)));
    try {
      resolved.push_back(rule->axes.resolve(hf_shape, native_shape, map.sizes));
    } catch (const Error& error) {
      throw Error(error.kind, fqn + ": " + error.what());
    }
    correspondences.push_back(std::make_shared<Correspondence>(resolved.back().correspondence));
    if (rule->stacked()) experts = resolved.back().experts.count;
  }
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    for (std::size_t r = 0; r < rules.size(); ++r) {
      const Rule& rule = *rules[r];
      if (!rule.stacked() && expert > 0) continue;
      if (rule.stacked()) captures.expert = expert;
      const bool has_shards = rule.axes.counts_shards();
      for (std::int64_t shard = 0; shard < resolved[r].shards.count; ++shard) {
        if (has_shards) captures.shard = shard;
        pieces.push_back(
            {to_checkpoint_spelling(map.dialect, rule.hf.fill(captures)), resolved[r].hf_shape, &rule,
             rule.stacked() ? expert : -1, has_shards ? shard : -1, correspondences[r],
             resolved[r].native_box_of(expert, shard),
             rule.multiplier ? to_checkpoint_spelling(map.dialect, rule.multiplier->fill(captures)) : ""});
      }
    }
  }
  return pieces;
}

std::vector<std::string> hf_names_of(const WeightMap& map, const std::string& fqn, std::int64_t expert) {
  Captures captures;
  std::vector<std::string> names;
  for (const Rule* rule : rules_of(map, fqn, captures)) {
    if (rule->stacked()) captures.expert = expert;
    names.push_back(to_checkpoint_spelling(map.dialect, rule->hf.fill(captures)));
  }
  return names;
}

std::vector<std::string> quantized_patterns(const WeightMap& map) {
  std::vector<std::string> patterns;
  for (const Rule& rule : map.rules) {
    if (rule.quantized) patterns.push_back(rule.hf.text());
  }
  return patterns;
}

std::vector<NameMatch> native_matches_of(const WeightMap& map, std::string_view hf_name) {
  const std::string name = to_rules_spelling(map.dialect, weight_name_of(hf_name));
  std::vector<NameMatch> matches;
  if (fits_any(map.without_place, name) || fits_any(map.strangers, name)) return matches;
  const Rule* first = rule_of_hf(map, name);
  if (first == nullptr) return matches;
  for (const Rule& rule : map.rules) {
    // Further rows that only find sources, such as other spellings of a name, match nothing further.
    if (&rule != first && (rule.hf.text() != first->hf.text() || !rule.known)) continue;
    const Captures captures = *rule.hf.match(name);
    int number = 0;
    for (const Rule* before = map.rules.data(); before != &rule; ++before) {
      if (before->native.text() == rule.native.text()) ++number;
    }
    matches.push_back({rule.native.fill(captures), &rule, captures, number});
  }
  return matches;
}

namespace {

/// In which layers the checkpoint has a tensor of each rule; -1 where the rule's names have none.
using LayersOfRules = std::map<const Rule*, std::set<std::int64_t>>;

LayersOfRules layers_with(const std::vector<const Rule*>& rules, const Dialect& dialect,
                          const Catalog& catalog) {
  LayersOfRules layers;
  for (const SourceTensor& tensor : catalog.tensors) {
    const std::string name = dialect.empty() ? tensor.name : to_rules_spelling(dialect, tensor.name);
    for (const Rule* rule : rules) {
      if (const auto captures = rule->hf.match(name)) layers[rule].insert(captures->layer);
    }
  }
  return layers;
}

/// The alternative for a layer: the first one of which all is there, else that of which most is.
int alternative_in(std::int64_t layer, const std::map<int, std::vector<const Rule*>>& alternatives,
                   const LayersOfRules& layers) {
  int likeliest = alternatives.begin()->first;
  std::size_t most = 0;
  for (const auto& [number, rules] : alternatives) {
    const auto is_there = [&, at = layer](const Rule* rule) {
      const auto found = layers.find(rule);
      return found != layers.end() && found->second.contains(at);
    };
    const auto there = static_cast<std::size_t>(std::count_if(rules.begin(), rules.end(), is_there));
    if (there == rules.size()) return number;
    if (there > most) likeliest = number;
    most = std::max(most, there);
  }
  return likeliest;
}

/// The rule for one layer alone.
Rule in_layer(const Rule& rule, std::int64_t layer) {
  const Captures captures{layer, -1, -1, "{*}"};
  Rule concrete = rule;
  concrete.hf = NamePattern(rule.hf.fill(captures));
  concrete.native = NamePattern(rule.native.fill(captures));
  return concrete;
}

}  // namespace

void choose_alternatives(WeightMap& map, const Catalog& catalog) {
  std::map<std::string, std::map<int, std::vector<const Rule*>>> alternatives;  // by native name
  for (const Rule& rule : map.rules) {
    if (rule.known) alternatives[rule.native.text()][rule.alternative].push_back(&rule);
  }
  std::erase_if(alternatives, [](const auto& of_name) { return of_name.second.size() < 2; });
  std::vector<const Rule*> all;
  for (const auto& [name, numbers] : alternatives) {
    for (const auto& [number, rules] : numbers) all.insert(all.end(), rules.begin(), rules.end());
  }
  const LayersOfRules layers = all.empty() ? LayersOfRules{} : layers_with(all, map.dialect, catalog);
  std::vector<Rule> chosen;  // of layers that do not have the usual alternative
  std::set<const Rule*> others;
  for (const auto& [name, numbers] : alternatives) {
    std::set<std::int64_t> of_name;
    for (const auto& [number, rules] : numbers) {
      for (const Rule* rule : rules) {
        if (const auto found = layers.find(rule); found != layers.end())
          of_name.insert(found->second.begin(), found->second.end());
      }
    }
    std::map<std::int64_t, int> of_layer;
    std::map<int, int> count;
    for (const std::int64_t layer : of_name)
      ++count[of_layer[layer] = alternative_in(layer, numbers, layers)];
    const int usual = count.empty() ? numbers.begin()->first
                                    : std::max_element(count.begin(), count.end(), [](auto& a, auto& b) {
                                        return a.second < b.second;
                                      })->first;
    for (const auto& [layer, number] : of_layer) {
      if (number == usual) continue;
      for (const Rule* rule : numbers.at(number)) chosen.push_back(in_layer(*rule, layer));
    }
    for (const auto& [number, rules] : numbers) {
      if (number != usual) others.insert(rules.begin(), rules.end());
    }
  }
  std::vector<Rule> kept;
  for (Rule& rule : map.rules) {
    if (!others.contains(&rule)) kept.push_back(std::move(rule));
  }
  chosen.insert(chosen.end(), std::make_move_iterator(kept.begin()), std::make_move_iterator(kept.end()));
  map.rules = std::move(chosen);
}

bool stays_wide(const WeightMap& map, std::string_view hf_name) {
  return std::any_of(map.wide.begin(), map.wide.end(),
                     [&](std::string_view ending) { return hf_name.ends_with(ending); });
}

bool may_be_absent(const WeightMap& map, std::string_view fqn) { return fits_any(map.absent, fqn); }

bool is_multiplier(const WeightMap& map, std::string_view hf_name) {
  return std::any_of(map.rules.begin(), map.rules.end(), [&](const Rule& rule) {
    return rule.multiplier && rule.multiplier->match(to_rules_spelling(map.dialect, hf_name));
  });
}

bool is_ignored(const WeightMap& map, std::string_view hf_name) {
  return fits_any(map.ignored, to_rules_spelling(map.dialect, hf_name)) || is_multiplier(map, hf_name);
}

bool is_without_place(const WeightMap& map, std::string_view hf_name) {
  return fits_any(map.without_place, to_rules_spelling(map.dialect, weight_name_of(hf_name)));
}

std::string to_rules_spelling(const Dialect& dialect, std::string_view hf_name) {
  for (const auto& [in_rules, in_files] : dialect) {
    if (hf_name.starts_with(in_files)) return replace_prefix(hf_name, in_files, in_rules);
  }
  return std::string(hf_name);
}

std::string to_checkpoint_spelling(const Dialect& dialect, std::string_view rules_name) {
  for (const auto& [in_rules, in_files] : dialect) {
    if (rules_name.starts_with(in_rules)) return replace_prefix(rules_name, in_rules, in_files);
  }
  return std::string(rules_name);
}

Shape native_shape_of(const WeightMap& map, const Catalog& catalog, const NameMatch& match,
                      const std::string& hf_name, std::int64_t experts) {
  Sizes sizes = map.sizes;
  if (match.rule->stacked()) sizes.insert_or_assign("{expert}", experts);
  try {
    const std::optional<Shape> shape = catalog.shape_of(hf_name);
    if (match.rule->axes.is_identity()) return *shape;
    for (const Rule& sibling : map.rules) {
      if (&sibling == match.rule || sibling.native.text() != match.rule->native.text()) continue;
      const std::string name = to_checkpoint_spelling(map.dialect, sibling.hf.fill(match.captures));
      if (const auto of_sibling = catalog.shape_of(name)) sibling.axes.settle_sizes(*of_sibling, sizes);
    }
    return match.rule->axes.resolve(shape, std::nullopt, sizes).native_shape;
  } catch (const Error& error) {
    throw Error(error.kind, hf_name + ": " + error.what());
  }
}

}  // namespace shardwright
