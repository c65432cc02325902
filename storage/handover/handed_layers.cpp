#include "storage/handover/handed_layers.h"

#include <cstddef>
#include <cstdint>
#include <utility>

#include "storage/handover/piece_order.h"

namespace shardwright {

HandedLayers layers_of(const Catalog& catalog) {
  HandoverOrder order = order_by_layer(catalog);
  HandedLayers layers{{}, std::move(order.layers)};
  for (std::size_t t = 0; t < catalog.tensors.size(); ++t) {
    const std::uint32_t layer = layers.of_tensor[t];
    if (layer >= layers.names.size()) layers.names.resize(layer + std::size_t{1});
    if (layers.names[layer].empty()) layers.names[layer] = layer_of(weight_of(catalog.tensors[t].name));
  }
  return layers;
}

}  // namespace shardwright
