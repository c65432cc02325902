#include "planner/load/cut_layers.h"

#include <cstdint>
#include <set>

#include "planner/names/rule_pieces.h"
#include "planner/problems.h"

namespace shardwright {

std::string fault_of_cut_layers(const Catalog& catalog, const WeightMap& map, const std::vector<bool>& used,
                                const std::vector<std::string>& unused) {
  if (map.layer_count == 0 || unused.empty()) return {};
  std::set<std::int64_t> held;
  for (std::size_t i = 0; i < catalog.tensors.size(); ++i) {
    const std::int64_t layer = used[i] ? layer_of(map, catalog.tensors[i].name) : map.layer_count;
    if (layer < map.layer_count || layer == after_layers) held.insert(layer);
  }
  if (!held.contains(before_layers) || !held.contains(0) || !held.contains(after_layers)) return {};
  std::set<std::int64_t> left;
  for (const std::string& name : unused) {
    const std::int64_t layer = layer_of(map, name);
    if (layer == before_layers || layer == after_layers || layer >= map.layer_count) continue;
    if (held.contains(layer)) return {};
    left.insert(layer);
  }
  held.erase(before_layers);
  held.erase(after_layers);
  if (left.empty() || *left.begin() < *held.rbegin()) return {};
  return "the trainer has layers " + ranges_of({held.begin(), held.end()}) +
         " and what comes before and after all layers, but the checkpoint has layers " +
         ranges_of({left.begin(), left.end()}) + " as well (config.json: num_hidden_layers " +
         std::to_string(map.layer_count) +
         "); make the model with all of them, or leave them out on purpose with strict=False";
}

}  // namespace shardwright
