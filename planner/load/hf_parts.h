#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// Elements that an HF tensor and a native tensor have in common, as strides in the memory of each.
struct StridedPart {
  std::string fqn;  ///< of the native tensor
  Shape sizes;
  Shape hf_strides;                ///< elements
  std::int64_t hf_offset = 0;      ///< elements, from the first one of this rank's part
  Shape native_strides;            ///< elements
  std::int64_t native_offset = 0;  ///< elements, from the first one of this rank's part
};

/// What this rank's part of an HF tensor is made of.
struct HfParts {
  std::vector<StridedPart> parts;

  /// The HF part is a view of a native one: there is one part, whose sizes are the HF part's shape.
  bool is_view = false;
};

/// The native tensors that the HF tensor is made of, in the order of the rules. A tied head is none of them
/// where the embedding is one.
std::vector<std::string> made_of(const WeightMap& map, const std::string& hf_name);

/// What the HF tensor of `hf`'s name is made of on this rank. `hf` says how its part lies, contiguous;
/// `natives` are the tensors that it is made of. `shapes`, if given, has the shapes of HF tensors that native
/// ones do not tell. Throws Error(mismatch) unless this rank holds each element of the part once.
HfParts hf_parts(const WeightMap& map, const TensorSpec& hf, const std::vector<TensorSpec>& natives,
                 const Catalog* shapes = nullptr);

}  // namespace shardwright
