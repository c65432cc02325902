#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {

/// A tensor of a trainer that keeps an encoded weight as files do: its codes, or one of their companions.
///
/// The codes have the weight's native name, a companion has that and its own ending, as rules know it:
/// "_scale_inv", "_scale", "_global_scale", "_scale_2", "_input_scale", ... The rule that says which
/// rectangles of the weight go where says it of each of them in units of its own: bytes or words along the
/// columns of HF's codes, blocks along both dimensions of the scales. Experts are stacked, parts joined,
/// matrices transposed; a part whose last block is cut short has that block to itself. What has one number
/// for all of a dimension has size 1 there, or one number for each part that is joined along it.
struct PackedTensor {
  NativeTensor native;        ///< its dtype is the files'
  std::string weight;         ///< the native name of the weight
  bool is_needed = true;      ///< to decode the weight; false: scales of activations
  std::vector<Piece> pieces;  ///< HF tensors as packed_catalog() has them
};

/// How the encoded weights of a checkpoint would be held packed.
struct PackedTensors {
  std::shared_ptr<const WeightMap> rules;                    ///< whose rules the pieces point to
  std::map<std::string, PackedTensor, std::less<>> tensors;  ///< by native name

  /// Native names of encoded weights that cannot be held so, and why: a rule that takes a byte or a block
  /// apart, parts that are encoded differently.
  std::map<std::string, std::string, std::less<>> faults;
};

/// All encoded weights of the checkpoint, held packed in the map's layout.
PackedTensors packed_tensors(const Catalog& catalog, const WeightMap& map);

/// What a plan of packed tensors is made of, in place of the checkpoint's catalog and the layout's map:
/// tensors, files and indices are the same.
struct Packed {
  Catalog catalog;  ///< codes that share bytes are seen as the bytes or words that files hold
  WeightMap map;    ///< WeightMap::packed has the packed tensors

  /// What is wrong with the trainer's tensors, for LoadPlanOptions::problems.
  std::vector<std::string> problems;
};

/// A trainer's tensors, by name, and their dtypes.
using HeldDtypes = std::map<std::string, DType, std::less<>>;

/// The trainer's encoded weights in BF16, F16, F32 or F64 are decoded; all others are held packed. A weight
/// that is packed needs the companions that decode it beside it.
Packed as_packed(const Catalog& catalog, const WeightMap& map, const HeldDtypes& held);

/// Where there is no trainer: all that can be packed is. Throws Error(mismatch), naming the weights, if some
/// cannot.
Packed as_packed(const Catalog& catalog, const WeightMap& map);

}  // namespace shardwright
