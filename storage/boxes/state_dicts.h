#pragma once

#include <vector>

#include "planner/names/tensor_spec.h"
#include "planner/names/weight_map.h"

namespace shardwright {

// The adapters between a trainer's state dict and one in Hugging Face's names and shapes, both in CPU memory.
// Neither reads or writes a file, nor speaks to another rank.

/// The HF tensors that are made of what this rank holds: names, shapes, and the dtype of the native tensor
/// each is in; without memory, for the caller to give it some. In the order of the native tensors. An expert
/// of another rank is left out. Throws Error(mismatch), naming them, for HF tensors of which this rank holds
/// only a part, and for native tensors that no rule of the map knows.
std::vector<TensorSpec> hf_tensors_of(const std::vector<TensorSpec>& native, const WeightMap& map);

/// Fills the native tensors from HF tensors, of which this rank may hold parts. FP8 weights with their scales
/// beside them are decoded; wide floats are cast to the destination's dtype. `threads` decode (0: all
/// processors). Throws one Error(mismatch), before anything is written, that lists what is missing or does
/// not fit; Error(argument) for a name that comes twice, or tensors that are not in CPU memory.
void from_hf(const std::vector<TensorSpec>& hf, const std::vector<TensorSpec>& native, const WeightMap& map,
             int threads = 0);

/// The inverse, without encoding: fills the HF tensors from the native ones, which must hold every element of
/// them; wide floats are cast to the HF tensor's dtype. `threads` copy. Throws as from_hf(), and
/// Error(mismatch) for an HF tensor that no native one fills, or that is FP8 with scales.
void to_hf(const std::vector<TensorSpec>& native, const std::vector<TensorSpec>& hf, const WeightMap& map,
           int threads = 0);

}  // namespace shardwright
