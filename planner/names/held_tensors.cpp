#include "planner/names/held_tensors.h"

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/companions.h"
#include "planner/names/rule_pieces.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

/// What the rule's HF pattern says before it names the expert: alike for all weights of a layer's experts.
std::string_view stem_of(const Rule& rule) {
  const std::string_view text = rule.hf.text();
  return text.substr(0, text.find("{expert}"));
}

/// Whether several HF tensors make up a native tensor (one expert of it, if it is stacked).
bool joins(const WeightMap& map, const Rule& rule) {
  return std::count_if(map.rules.begin(), map.rules.end(),
                       [&](const Rule& other) { return other.native.text() == rule.native.text(); }) > 1;
}

struct Found {
  const Rule* rule = nullptr;  // null: no rule knows the name
  Captures captures;
  std::vector<std::string> sources;
  std::set<std::int64_t> experts;
};

using FoundByName = std::map<std::string, Found>;

void refuse_lone_scales(const Catalog& catalog) {
  std::vector<std::string> lone;
  for (const SourceTensor& tensor : catalog.tensors) {
    if (is_scale_name(tensor.name) && catalog.find(weight_name_of(tensor.name)).empty() &&
        (lone.empty() || lone.back() != tensor.name)) {
      lone.push_back(tensor.name);
    }
  }
  Problems problems;
  for (const std::string& name : grouped_names(lone)) problems.add(name + ": expected its weight beside it");
  problems.throw_if_any(ErrorKind::mismatch,
                        catalog.directory.string() + " has scales without their weights:");
}

/// The other stacks of each layer that has one, with the experts that the layer has something of.
void add_sibling_stacks(const WeightMap& map, FoundByName& found) {
  FoundByName siblings;
  for (const auto& [fqn, stack] : found) {
    if (stack.rule == nullptr || !stack.rule->stacked()) continue;
    for (const Rule& rule : map.rules) {
      if (!rule.stacked() || stem_of(rule) != stem_of(*stack.rule)) continue;
      Found& sibling = siblings[rule.native.fill(stack.captures)];
      sibling.rule = &rule;
      sibling.captures = stack.captures;
      sibling.experts.insert(stack.experts.begin(), stack.experts.end());
    }
  }
  for (auto& [fqn, sibling] : siblings) {
    const auto [entry, is_new] = found.try_emplace(fqn, sibling);
    if (!is_new) entry->second.experts = std::move(sibling.experts);
  }
}

/// A tensor that is one HF tensor cannot be two.
void refuse_rivals(const WeightMap& map, const std::string& fqn, const Found& found) {
  if (found.sources.size() < 2 ||
      (found.rule != nullptr && (found.rule->stacked() || joins(map, *found.rule))))
    return;
  throw Error(ErrorKind::mismatch, fqn + ": expected one HF tensor for it, found " + found.sources[0] +
                                       " and " + found.sources[1] + "; remove what is not meant");
}

/// The native dimension of which an expert's HF tensor is a part only; -1 if there is none.
int joined_dimension(const Piece& piece, const Shape& native_shape, int expert_dimension) {
  const Box hull = hull_of(piece);
  for (std::size_t d = 0; d < native_shape.size(); ++d) {
    if (static_cast<int>(d) != expert_dimension && hull.size[d] != native_shape[d])
      return static_cast<int>(d);
  }
  return -1;
}

HeldTensor describe(const Catalog& catalog, const WeightMap& map, std::string fqn, Found found,
                    std::int64_t experts) {
  refuse_rivals(map, fqn, found);
  HeldTensor held;
  held.fqn = std::move(fqn);
  held.sources = std::move(found.sources);
  for (const std::string& name : held.sources) {
    if (scales_of(catalog, name).empty()) continue;
    for (std::string& companion : companions_of(catalog, name)) held.scales.push_back(std::move(companion));
  }
  held.experts.assign(found.experts.begin(), found.experts.end());
  const bool has_scales = !held.sources.empty() && !scales_of(catalog, held.sources.front()).empty();
  if (found.rule == nullptr) {
    held.as_it_is = !has_scales;
    held.shape = Catalog::global_shape(catalog.find(held.sources.front()));
    for (std::size_t d = 0; d < held.shape.size(); ++d) held.axes.push_back(static_cast<int>(d));
    return held;
  }
  const Rule& rule = *found.rule;
  held.stacked = rule.stacked();
  if (held.sources.empty()) return held;
  if (experts < 0) experts = held.experts.empty() ? 0 : held.experts.back() + 1;
  const std::string& source = held.sources.front();
  held.shape = native_shape_of(map, catalog, {held.fqn, &rule, found.captures, 0}, source, experts);
  // FP8 without scales is left to the plan, which refuses it.
  const bool decoded = is_float8(catalog.find(source).front().dtype) || has_scales;
  held.as_it_is = rule.axes.is_identity() && !joins(map, rule) && !decoded;
  for (const Piece& piece : pieces_of(map, held.fqn, held.shape, &catalog)) {
    if (!piece.multiplier.empty() && !catalog.find(piece.multiplier).empty() &&
        std::find(held.scales.begin(), held.scales.end(), piece.multiplier) == held.scales.end())
      held.scales.push_back(piece.multiplier);
    if (piece.hf_name != source) continue;
    held.axes = dimensions_of(piece);
    if (joins(map, rule)) held.joined = joined_dimension(piece, held.shape, rule.stacked() ? 0 : -1);
  }
  return held;
}

}  // namespace

std::vector<HeldTensor> held_tensors(const Catalog& catalog, const WeightMap& map, std::int64_t experts) {
  refuse_lone_scales(catalog);
  FoundByName found;
  std::string_view previous;
  for (const SourceTensor& tensor : catalog.tensors) {
    if (tensor.name == previous || is_scale_name(tensor.name) || is_ignored(map, tensor.name) ||
        is_companion(catalog, tensor.name) || is_without_place(map, tensor.name)) {
      continue;
    }
    previous = tensor.name;
    const std::vector<NameMatch> matches = native_matches_of(map, tensor.name);
    if (matches.empty()) found[tensor.name].sources.push_back(tensor.name);
    for (const NameMatch& match : matches) {
      Found& entry = found[match.fqn];
      if (entry.rule == nullptr) {
        entry.rule = match.rule;
        entry.captures = match.captures;
      }
      entry.sources.push_back(tensor.name);
      if (match.rule->stacked()) entry.experts.insert(match.captures.expert);
    }
  }
  add_sibling_stacks(map, found);
  std::vector<HeldTensor> held;
  held.reserve(found.size());
  for (auto& [fqn, entry] : found) {
    held.push_back(describe(catalog, map, fqn, std::move(entry), experts));
    for (std::vector<std::string>* names : {&held.back().sources, &held.back().scales}) {
      for (std::string& name : *names) name = stored_name(catalog.find(name).front());
    }
  }
  return held;
}

std::vector<std::string> missing_weights(const Catalog& catalog, const WeightMap& map, const std::string& fqn,
                                         std::int64_t first, std::int64_t last) {
  std::vector<std::string> missing;
  for (std::int64_t expert = first; expert < last; ++expert) {
    for (std::string& name : hf_names_of(map, fqn, expert)) {
      if (catalog.find(name).empty()) missing.push_back(std::move(name));
    }
  }
  return missing;
}

WeightMap unchanged_names() {
  WeightMap map;
  map.family = "no model";
  map.layout = "as stored";
  map.rules.push_back({NamePattern("{*}"), NamePattern("{*}")});
  return map;
}

}  // namespace shardwright
