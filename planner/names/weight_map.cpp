#include "planner/names/weight_map.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/encodings.h"
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

/// The shape of an HF tensor, if the catalog has it.
std::optional<Shape> shape_in(const Catalog& catalog, const std::string& hf_name) {
  const std::span<const SourceTensor> chunks = catalog.find(hf_name);
  return chunks.empty() ? std::nullopt : std::optional(Catalog::global_shape(chunks));
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

bool may_touch(const Piece& piece, const Box& native) {
  if (is_plain(piece.correspondence->native_view)) return intersects(piece.native_box, native);
  return intersects(hull_of(piece), native);
}

std::vector<Piece> pieces_of(const WeightMap& map, const std::string& fqn, const Shape& native_shape,
                             const Catalog* catalog) {
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
      hf_shape = shape_in(*catalog, to_checkpoint_spelling(map.dialect, rule->hf.fill(captures)));
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
             rule.factor ? to_checkpoint_spelling(map.dialect, rule.factor->fill(captures)) : ""});
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

std::vector<std::string> quantised_patterns(const WeightMap& map) {
  std::vector<std::string> patterns;
  for (const Rule& rule : map.rules) {
    if (rule.quantised) patterns.push_back(rule.hf.text());
  }
  return patterns;
}

std::vector<NativePlace> native_places_of(const WeightMap& map, std::string_view hf_name) {
  const std::string name = to_rules_spelling(map.dialect, weight_name_of(hf_name));
  std::vector<NativePlace> places;
  if (fits_any(map.without_place, name) || fits_any(map.strangers, name)) return places;
  const Rule* first = rule_of_hf(map, name);
  if (first == nullptr) return places;
  for (const Rule& rule : map.rules) {
    // Further rows that only find sources, such as other spellings of a name, are no further places.
    if (&rule != first && (rule.hf.text() != first->hf.text() || !rule.known)) continue;
    const Captures captures = *rule.hf.match(name);
    int number = 0;
    for (const Rule* before = map.rules.data(); before != &rule; ++before) {
      if (before->native.text() == rule.native.text()) ++number;
    }
    places.push_back({rule.native.fill(captures), &rule, captures, number});
  }
  return places;
}

void choose_alternatives(WeightMap& map, const Catalog& catalog) {
  std::map<std::string, std::set<int>> alternatives;  // by native name
  for (const Rule& rule : map.rules) {
    if (rule.known) alternatives[rule.native.text()].insert(rule.alternative);
  }
  std::erase_if(alternatives, [](const auto& of_name) { return of_name.second.size() < 2; });
  if (alternatives.empty()) return;
  std::vector<std::string> respelled;  // in the order of the catalog, if names are not those of the rules
  if (!map.dialect.empty()) {
    for (const SourceTensor& tensor : catalog.tensors)
      respelled.push_back(to_rules_spelling(map.dialect, tensor.name));
  }
  const auto is_there = [&](const Rule& rule) {
    const auto fits = [&](const std::string& name) { return rule.hf.match(name).has_value(); };
    if (!respelled.empty()) return std::any_of(respelled.begin(), respelled.end(), fits);
    return std::any_of(catalog.tensors.begin(), catalog.tensors.end(),
                       [&](const SourceTensor& tensor) { return fits(tensor.name); });
  };
  std::map<std::string, int> chosen;
  for (const auto& [name, numbers] : alternatives) {
    const auto is_complete = [&, &name = name](int number) {
      return std::all_of(map.rules.begin(), map.rules.end(), [&](const Rule& rule) {
        return !rule.known || rule.native.text() != name || rule.alternative != number || is_there(rule);
      });
    };
    const auto first = std::find_if(numbers.begin(), numbers.end(), is_complete);
    chosen[name] = first == numbers.end() ? *numbers.begin() : *first;
  }
  std::erase_if(map.rules, [&](const Rule& rule) {
    const auto found = chosen.find(rule.native.text());
    return rule.known && found != chosen.end() && rule.alternative != found->second;
  });
}

bool stays_wide(const WeightMap& map, std::string_view hf_name) {
  return std::any_of(map.wide.begin(), map.wide.end(),
                     [&](std::string_view ending) { return hf_name.ends_with(ending); });
}

bool may_be_absent(const WeightMap& map, std::string_view fqn) { return fits_any(map.absent, fqn); }

bool is_factor(const WeightMap& map, std::string_view hf_name) {
  return std::any_of(map.rules.begin(), map.rules.end(), [&](const Rule& rule) {
    return rule.factor && rule.factor->match(to_rules_spelling(map.dialect, hf_name));
  });
}

bool is_ignored(const WeightMap& map, std::string_view hf_name) {
  return fits_any(map.ignored, to_rules_spelling(map.dialect, hf_name));
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

Shape native_shape_of(const WeightMap& map, const Catalog& catalog, const NativePlace& place,
                      const std::string& hf_name, std::int64_t experts) {
  Sizes sizes = map.sizes;
  if (place.rule->stacked()) sizes.insert_or_assign("{expert}", experts);
  try {
    const std::optional<Shape> shape = shape_in(catalog, hf_name);
    if (place.rule->axes.is_identity()) return *shape;
    for (const Rule& sibling : map.rules) {
      if (&sibling == place.rule || sibling.native.text() != place.rule->native.text()) continue;
      const std::string name = to_checkpoint_spelling(map.dialect, sibling.hf.fill(place.captures));
      if (const auto of_sibling = shape_in(catalog, name)) sibling.axes.settle_sizes(*of_sibling, sizes);
    }
    return place.rule->axes.resolve(shape, std::nullopt, sizes).native_shape;
  } catch (const Error& error) {
    throw Error(error.kind, hf_name + ": " + error.what());
  }
}

}  // namespace shardwright
