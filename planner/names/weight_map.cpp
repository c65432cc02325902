#include "planner/names/weight_map.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>

#include "planner/error.h"
#include "planner/names/companions.h"
#include "planner/names/expert_names.h"
#include "planner/names/packed_tensors.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {

WeightMap::WeightMap() = default;
WeightMap::WeightMap(const WeightMap&) = default;
WeightMap::WeightMap(WeightMap&&) noexcept = default;
WeightMap& WeightMap::operator=(const WeightMap&) = default;
WeightMap& WeightMap::operator=(WeightMap&&) noexcept = default;
WeightMap::~WeightMap() = default;

std::int64_t layer_of(const WeightMap& map, std::string_view hf_name) {
  const std::string name = to_rules_spelling(map.dialect, hf_name);
  for (const NamePattern& pattern : map.layers) {
    if (const std::optional<Captures> found = pattern.match(name)) return found->layer;
  }
  const bool comes_after = std::any_of(map.after_layers.begin(), map.after_layers.end(),
                                       [&](const NamePattern& p) { return p.match(name).has_value(); });
  return comes_after ? after_layers : before_layers;
}

std::vector<NativeTensor> native_tensors(const Catalog& catalog, const WeightMap& map, DType dtype) {
  struct Found {
    NameMatch match;
    std::string hf_name;
    DType dtype;
    std::int64_t experts;
    std::int64_t layer;
  };
  std::map<std::string, Found> found;
  std::string_view previous;
  for (const SourceTensor& tensor : catalog.tensors) {
    if (tensor.name == previous || is_scale_name(tensor.name) || is_ignored(map, tensor.name) ||
        is_companion(catalog, tensor.name))
      continue;
    previous = tensor.name;
    for (const NameMatch& match : native_matches_of(map, tensor.name)) {
      if (!match.rule->known) continue;
      if (match.captures.expert >= std::ssize(catalog.tensors)) {
        throw Error(ErrorKind::malformed, catalog.files[tensor.file].name + ": tensor " + tensor.name +
                                              " is of expert " + std::to_string(match.captures.expert) +
                                              ", but the checkpoint holds only " +
                                              std::to_string(catalog.tensors.size()) + " tensors in all");
      }
      const std::int64_t experts = match.captures.expert + 1;
      const bool scaled = !scales_of(catalog, tensor.name).empty();
      const auto [entry, is_new] = found.try_emplace(
          match.fqn,
          Found{match, tensor.name, scaled ? dtype : tensor.dtype, experts, layer_of(map, tensor.name)});
      entry->second.experts = std::max(entry->second.experts, experts);
    }
  }
  std::vector<NativeTensor> tensors;
  if (map.packed != nullptr) {
    for (const auto& [fqn, packed] : map.packed->tensors) {
      tensors.push_back(packed.native);
      found.erase(fqn);
    }
  }
  const bool all_are_decoded = tensors.empty();
  for (const auto& [fqn, entry] : found) {
    Shape shape;
    try {
      shape = native_shape_of(map, catalog, entry.match, entry.hf_name, entry.experts);
    } catch (const Error& error) {
      const SourceTensor& stored = catalog.find(entry.hf_name).front();
      throw Error(ErrorKind::malformed, catalog.files[stored.file].name + ": " + error.what());
    }
    const bool stacked = entry.match.rule->stacked() || (shape.size() > 1 && names_all_experts(fqn));
    tensors.push_back({fqn, entry.dtype, std::move(shape), stacked, entry.layer});
  }
  if (!all_are_decoded) {
    std::sort(tensors.begin(), tensors.end(),
              [](const NativeTensor& a, const NativeTensor& b) { return a.fqn < b.fqn; });
  }
  return tensors;
}

}  // namespace shardwright
