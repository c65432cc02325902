#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "planner/names/catalog.h"

namespace shardwright {

/// The layer that a tensor is of: its name up to the first number, "model.layers.3" of
/// "model.layers.3.mlp.gate.weight"; the module's name where there is none, "model.norm" of
/// "model.norm.weight".
std::string layer_of(std::string_view name);

/// The weight that a companion (scales, a global scale, a shape) belongs to; any other name unchanged.
std::string_view weight_of(std::string_view name);

/// By index into Catalog::tensors.
struct HandoverOrder {
  std::vector<std::uint32_t> places;  ///< in the order in which tensors are handed over
  std::vector<std::uint32_t> layers;  ///< place of its layer among the layers
};

/// Layers come as the files have them, those of one list by their numbers; tensors of a layer as the files
/// have them.
HandoverOrder order_by_layer(const Catalog& catalog);

}  // namespace shardwright
