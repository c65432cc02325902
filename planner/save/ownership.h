#pragma once

#include <functional>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/names/tensor_spec.h"
#include "planner/save/export_form.h"

namespace shardwright {

/// What one rank holds, or is to write, of a tensor of the trainer.
struct HeldBoxes {
  SavedTensor tensor;
  std::vector<Box> boxes;  ///< of the global tensor

  bool operator==(const HeldBoxes&) const = default;
};

/// What one rank holds of all tensors.
using Holdings = std::vector<HeldBoxes>;

/// The holdings that the specs describe.
Holdings holdings_of(const std::vector<TensorSpec>& specs);

/// Every tensor that some rank holds something of (or names), in the order of first appearance. Throws
/// Error(mismatch) for one that has another dtype or shape on another rank, naming both.
std::vector<SavedTensor> all_tensors(const std::vector<Holdings>& ranks);

/// Decides which rank writes what: each element of each tensor exactly once, by a rank that holds it. Boxes
/// that several ranks hold are dealt out so that all have about as many bytes to write, cut along the
/// tensor's dimension `cut(tensor, box)` where they are large. `bytes` is how many bytes of the result an
/// element takes. Throws Error(mismatch) for elements that no rank holds and for boxes that overlap without
/// being equal. The result has an entry for each rank, and the same input gives the same result.
std::vector<Holdings> deal_out(const std::vector<Holdings>& ranks,
                               const std::function<double(const SavedTensor&)>& bytes,
                               const std::function<std::size_t(const SavedTensor&, const Box&)>& cut);

/// True if the box of the global tensor lies inside one of the spec's boxes.
bool holds(const TensorSpec& spec, const Box& box);

/// The part of a spec that is this box of the global tensor, which it must hold.
TensorSpec part_of(const TensorSpec& spec, const Box& box);

}  // namespace shardwright
