#include "planner/load/rest_of_checkpoint.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <string_view>
#include <unordered_map>

#include "planner/load/cut_layers.h"
#include "planner/names/companions.h"
#include "planner/names/rule_pieces.h"
#include "planner/problems.h"

namespace shardwright {
namespace {

/// The trainer's tensors by name.
using Destinations = std::unordered_map<std::string_view, const TensorSpec*>;

/// Experts that a checkpoint has more of than the trainer's tensors, by names of those.
using Surplus = std::map<std::string, std::vector<std::int64_t>>;

/// Whether one of the matches is with a tensor of the trainer's; notes experts that it has no room for.
bool is_wanted(const std::vector<NameMatch>& matches, const Destinations& destinations, Surplus& surplus) {
  bool is_one = false;
  for (const NameMatch& match : matches) {
    const auto destination = destinations.find(match.fqn);
    if (destination == destinations.end()) continue;
    is_one = true;
    // All else that has a destination was not used because of a problem that has been noted.
    const Shape& shape = destination->second->global_shape;
    if (match.rule->stacked() && !shape.empty() && match.captures.expert >= shape[0])
      surplus[match.fqn].push_back(match.captures.expert);
  }
  return is_one;
}

std::string fault_of_surplus(const TensorSpec& spec, std::vector<std::int64_t> experts) {
  std::sort(experts.begin(), experts.end());
  experts.erase(std::unique(experts.begin(), experts.end()), experts.end());
  return spec.fqn + ": expected as many experts as the trainer's shape " + to_string(spec.global_shape) +
         " has, but the checkpoint has experts " + ranges_of(experts) + " as well";
}

/// Tensors of a checkpoint that nothing takes, by what is known of them.
struct LeftOver {
  std::vector<std::string> unknown;
  std::vector<std::string> lone_scales;
  std::vector<std::string> placed;  // that have a place in the layout, and no destination
  std::vector<std::string> unused;  // those, and what has no place there
  Surplus surplus;
};

LeftOver left_over(const Catalog& catalog, const WeightMap& map, const std::vector<bool>& used,
                   const Destinations& destinations) {
  LeftOver left;
  std::string_view previous;
  for (std::size_t i = 0; i < catalog.tensors.size(); ++i) {
    const std::string& name = catalog.tensors[i].name;
    if (used[i] || name == previous || is_ignored(map, name)) continue;
    previous = name;
    if (is_scale_name(name) && !catalog.find(weight_name_of(name)).empty()) continue;
    if (is_companion(catalog, name)) continue;
    if (is_scale_name(name)) {
      left.lone_scales.push_back(name);
      continue;
    }
    if (is_without_place(map, name)) {
      left.unused.push_back(name);
      continue;
    }
    const std::vector<NameMatch> matches = native_matches_of(map, name);
    if (matches.empty() || !matches.front().rule->known) {
      left.unknown.push_back(name);
    } else if (!is_wanted(matches, destinations, left.surplus)) {
      left.placed.push_back(name);
      left.unused.push_back(name);
    }
  }
  return left;
}

}  // namespace

RestOfCheckpoint rest_of_checkpoint(const std::vector<TensorSpec>& specs, const Catalog& catalog,
                                    const WeightMap& map, const std::vector<bool>& used,
                                    const LoadPlanOptions& options) {
  Destinations destinations;
  for (const TensorSpec& spec : specs) destinations.emplace(spec.fqn, &spec);
  LeftOver left = left_over(catalog, map, used, destinations);
  RestOfCheckpoint rest;
  rest.unused = std::move(left.unused);
  for (auto& [fqn, experts] : left.surplus)
    rest.faults.push_back(fault_of_surplus(*destinations.at(fqn), std::move(experts)));
  if (options.strict && !options.exporting) {
    std::string fault = fault_of_cut_layers(catalog, map, used, left.placed);
    if (!fault.empty()) rest.faults.push_back(std::move(fault));
  }
  if (!options.strict) {
    std::merge(left.unknown.begin(), left.unknown.end(), left.lone_scales.begin(), left.lone_scales.end(),
               std::back_inserter(rest.unknown));
    return rest;
  }
  for (const std::string& name : grouped_names(left.lone_scales)) {
    rest.faults.push_back(
        name + ": a scale without its weight, which the checkpoint lacks; strict=False leaves it out");
  }
  for (const std::string& name : grouped_names(left.unknown)) {
    rest.faults.push_back(name + ": no rule of " + map.family +
                          " knows this tensor of the checkpoint; strict=False leaves such tensors out");
  }
  return rest;
}

}  // namespace shardwright
