#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// Where a pipeline has what belongs to no layer: embeddings and the vision tower before the first, the last
/// norm, the head and MTP after the last.
inline constexpr std::int64_t before_layers = -1;
inline constexpr std::int64_t after_layers = std::numeric_limits<std::int64_t>::max();

/// Where a pipeline has an HF tensor: a layer from 0, before_layers or after_layers.
std::int64_t layer_of(const WeightMap& map, std::string_view hf_name);

/// A tensor of the trainer, over all ranks.
struct NativeTensor {
  std::string fqn;
  DType dtype;
  Shape shape;
  bool stacked;  ///< dimension 0 counts experts: by the rule, or as files have stacked them
  std::int64_t layer = before_layers;  ///< from 0; or before_layers, after_layers
  bool is_companion = false;           ///< of packed codes, such as their scales; see packed_tensors.h
};

/// The native tensors that a checkpoint fills: what a trainer of this layout would hold, in the order of the
/// names. Block-scaled weights become `dtype`; the others keep the dtype they are stored in. Tensors that no
/// rule knows are left out. The number of experts is the largest that the checkpoint has, plus one. Throws
/// Error(malformed) for an expert that is numbered higher than the checkpoint has tensors.
std::vector<NativeTensor> native_tensors(const Catalog& catalog, const WeightMap& map,
                                         DType dtype = DType::BF16);

}  // namespace shardwright
