#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner/box.h"
#include "planner/load_plan.h"
#include "planner/tensor_spec.h"

namespace shardwright {

/// A part of a transfer's source box as it lies in memory (in staging, or in a tensor), with the scales it
/// needs.
struct BoxInMemory {
  Box box;                              ///< of the source tensor, inside the transfer's source_box
  const std::byte* elements = nullptr;  ///< the box's first element
  Shape strides;  ///< elements, for each dimension of the box; 1 for the last, if it has several
  const std::byte* scales =
      nullptr;          ///< of the block that the first element is in; null where there are none
  Shape scale_strides;  ///< scales, for each dimension of the scale box; 1 for the last, if it has several
};

/// Decodes (or copies, or casts) the elements to their place in the destination of the transfer.
void place_box(const Transfer& transfer, DType source, const BoxInMemory& part,
               const TensorSpec& destination);

/// Where the box would have to be read to, if it needs neither conversion nor regrouping: its elements, laid
/// out by `strides` in memory, are laid out alike without gaps in the destination. Null where that is not so.
std::byte* place_as_it_is(const Transfer& transfer, DType source, const Box& box, const Shape& strides,
                          const TensorSpec& destination);

/// Throws Error(argument), naming the tensor, if a destination of the plan has no memory.
void expect_memory(const LoadPlan& plan, const std::vector<TensorSpec>& specs);

}  // namespace shardwright
