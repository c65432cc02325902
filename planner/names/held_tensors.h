#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// A native tensor that an HF state dict brings something for.
struct HeldTensor {
  std::string fqn;
  Shape shape;  ///< global; dimension 0 of a stack counts all experts. Empty if `sources` is
  bool stacked = false;
  bool as_it_is = false;  ///< the one HF tensor already is the native one: its name changes, nothing else
  std::vector<std::string>
      sources;  ///< the HF weights that are there, without their scales, as files call them
  std::vector<std::string> scales;    ///< scales and all other companions of those, and what multiplies them
  std::vector<std::int64_t> experts;  ///< of which the layer holds at least one weight, sorted

  /// HF dimension i of the sources runs along native dimension axes[i], -1: along no one dimension; `joined`
  /// is the native dimension that they share with other HF tensors, -1 if there is none.
  std::vector<int> axes;
  int joined = -1;
};

/// The native tensors that a rank's HF state dict brings something for, in the order of the names. HF tensors
/// that no rule knows keep their names; those that this layout does not use are left out. If a layer holds
/// one stack of experts, it holds all its stacks: those that the state dict brings nothing for are listed
/// without sources. `experts` is how many there are over all ranks; -1: as many as the catalog tells. Throws
/// Error(mismatch) for scales without their weight and for two HF tensors that are one native tensor.
std::vector<HeldTensor> held_tensors(const Catalog& catalog, const WeightMap& map, std::int64_t experts = -1);

/// The HF weights that a stack lacks of the experts first … last - 1.
std::vector<std::string> missing_weights(const Catalog& catalog, const WeightMap& map, const std::string& fqn,
                                         std::int64_t first, std::int64_t last);

/// The map that leaves every name as it is, for tensors that only need decoding.
WeightMap unchanged_names();

}  // namespace shardwright
