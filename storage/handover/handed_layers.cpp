#include "storage/handover/handed_layers.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "storage/handover/piece_order.h"

namespace shardwright {

HandedLayers layers_of(const Catalog& catalog) {
  const std::vector<std::uint32_t> places = places_by_layer(catalog);
  std::vector<std::uint32_t> order(places.size());
  for (std::uint32_t t = 0; t < places.size(); ++t) order[places[t]] = t;
  HandedLayers layers{{}, std::vector<std::uint32_t>(places.size())};
  std::unordered_map<std::string, std::uint32_t> numbers;
  for (const std::uint32_t t : order) {
    std::string name = layer_of(weight_of(catalog.tensors[t].name));
    const auto [found, is_new] = numbers.emplace(name, static_cast<std::uint32_t>(layers.names.size()));
    if (is_new) layers.names.push_back(std::move(name));
    layers.of_tensor[t] = found->second;
  }
  return layers;
}

}  // namespace shardwright
