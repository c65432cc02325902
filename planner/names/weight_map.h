#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/dtype.h"
#include "planner/geometry/box.h"
#include "planner/names/catalog.h"

namespace shardwright {

class NamePattern;     // planner/names/name_pattern.h
struct PackedTensors;  // planner/names/packed_tensors.h
struct Rule;           // planner/names/rule_pieces.h

/// How the names of a checkpoint differ from those the rules use, prefix by prefix: {in the rules, in the
/// files}. The first prefix that fits counts.
using Dialect = std::vector<std::pair<std::string, std::string>>;

/// The rules that relate native tensors to HF tensors for one model family and one native layout, as
/// weight_map_for() makes them.
struct WeightMap {
  WeightMap();
  WeightMap(const WeightMap&);
  WeightMap(WeightMap&&) noexcept;
  WeightMap& operator=(const WeightMap&);
  WeightMap& operator=(WeightMap&&) noexcept;
  ~WeightMap();

  std::string family;
  std::string layout;
  std::vector<Rule> rules;                 ///< the first row that fits a name counts
  std::vector<NamePattern> ignored;        ///< HF names that no layout uses
  std::vector<NamePattern> without_place;  ///< HF names of the model that this layout has no tensor for
  std::vector<NamePattern> absent;     ///< native names of what is zero where files lack it: a load fills it
  std::vector<std::string_view> wide;  ///< ends of HF names that keep a trainer's F32 without a template
  std::vector<NamePattern> strangers;  ///< HF names that are not the model's, though rules fit them
  std::vector<NamePattern> layers;     ///< HF names of the decoder layers, which have {layer}
  std::vector<NamePattern> after_layers;  ///< HF names that a pipeline needs after its last layer
  std::int64_t layer_count = 0;  ///< config.json's num_hidden_layers, MTP's not among them; 0: it says none
  Dialect dialect;               ///< of the checkpoint at hand; empty where names are those of the rules
  Sizes sizes;                   ///< that the axes may name: of the model's config

  /// Native tensors that hold encoded weights as files do, in place of what the rules make of these. Null:
  /// all are decoded.
  std::shared_ptr<const PackedTensors> packed = nullptr;
};

/// Where a pipeline has what belongs to no layer: embeddings and the vision tower before the first, the last
/// norm, the head and MTP after the last.
inline constexpr std::int64_t before_layers = -1;
inline constexpr std::int64_t after_layers = std::numeric_limits<std::int64_t>::max();

/// A tensor of the trainer, over all ranks.
struct NativeTensor {
  std::string fqn;
  DType dtype;
  Shape shape;
  bool stacked;  ///< dimension 0 counts experts: by the rule, or as files have stacked them
  std::int64_t layer = before_layers;  ///< from 0; or before_layers, after_layers
  bool is_companion = false;           ///< of packed codes, such as their scales
};

/// The native tensors that a checkpoint fills: what a trainer of this layout would hold, in the order of the
/// names. Block-scaled weights become `dtype`; the others keep the dtype they are stored in. Tensors that no
/// rule knows are left out. The number of experts is the largest that the checkpoint has, plus one. Throws
/// Error(malformed) for an expert that is numbered higher than the checkpoint has tensors.
std::vector<NativeTensor> native_tensors(const Catalog& catalog, const WeightMap& map,
                                         DType dtype = DType::BF16);

}  // namespace shardwright
