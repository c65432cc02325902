#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cuda/placed_tile.h"
#include "planner/geometry/box.h"
#include "planner/load/load_plan.h"
#include "planner/names/tensor_spec.h"
#include "storage/strided_memory.h"

namespace shardwright {

/// A part of a transfer's source box as it lies in memory (in staging, or in a tensor), with the scales it
/// needs.
struct BoxInMemory {
  Box box;                    ///< of the source as it is seen, inside the transfer's source_box
  StridedMemory elements;     ///< of the box
  StridedMemory scales = {};  ///< of the scale box, from that of the block that the first element is in
  float global = 1;           ///< of encodings that have a global scale
};

/// One dimension of a box that is copied: how many indices, and elements between them on either side.
struct CopiedDimension {
  std::int64_t size;
  std::int64_t source_stride;
  std::int64_t destination_stride;
};

/// The dimensions of a box of that size, with the strides (elements) of each side.
std::vector<CopiedDimension> copied_dimensions(const Shape& size, const Shape& source_strides,
                                               const Shape& destination_strides);

/// Leaves out dimensions of one index and joins neighbours that run on without a gap on both sides.
std::vector<CopiedDimension> joined_dimensions(const std::vector<CopiedDimension>& dimensions);

/// True if the elements lie in the same order, without gaps, on both sides.
bool is_one_run(const std::vector<CopiedDimension>& dimensions);

/// Copies a box of any rank, converting as `place` does. The dimensions may come in any order.
void copy_box(const std::vector<CopiedDimension>& dimensions, DType source, DType destination,
              const std::byte* from, std::byte* to);

/// Cuts such a box into tiles and calls visit for each. Only addresses are computed, as in the next.
void for_each_tile(const std::vector<CopiedDimension>& dimensions, DType source, DType destination,
                   const std::byte* from, std::byte* to,
                   const std::function<void(const cuda::Placing&)>& visit);

/// Cuts the part into tiles and calls visit for each, with its place in the destination of the transfer. Only
/// addresses are computed: the memory of either side may be on a device.
void for_each_tile(const Transfer& transfer, DType source, const BoxInMemory& part,
                   const TensorSpec& destination, const std::function<void(const cuda::Placing&)>& visit);

/// Decodes (or copies, or casts) the elements to their place in the destination of the transfer.
void place_box(const Transfer& transfer, DType source, const BoxInMemory& part,
               const TensorSpec& destination);

/// Where the box would have to be read to, if it needs neither conversion nor regrouping: its elements, laid
/// out by `strides` in memory, are laid out alike without gaps in the destination. Null where that is not so.
std::byte* place_as_it_is(const Transfer& transfer, DType source, const Box& box, const Shape& strides,
                          const TensorSpec& destination);

/// Fills a tensor in CPU memory with zeros, around which nothing is touched.
void fill_with_zeros(const TensorSpec& spec);

/// Throws Error(argument), naming the tensor, if a destination of the plan has no memory.
void expect_memory(const LoadPlan& plan, const std::vector<TensorSpec>& specs);

/// Throws as expect_memory(), and for memory that is not the CPU's. `what` says in the message what needs it
/// there.
void expect_cpu_memory(const LoadPlan& plan, const std::vector<TensorSpec>& specs, const std::string& what);

}  // namespace shardwright
