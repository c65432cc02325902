#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner/box.h"
#include "planner/load_plan.h"

namespace shardwright {

/// How a box of a row-major tensor is read from its file into staging.
///
/// The box consists of runs of contiguous bytes. If the gaps between them are short, one request reads the
/// whole span, gaps included, and staging holds it as the file does; otherwise each run is a request of its
/// own and staging holds the runs back to back.
struct BoxReading {
  std::uint64_t begin = 0;                 ///< file offset of the first byte
  std::uint64_t run_bytes = 0;             ///< length of a run
  std::vector<std::uint64_t> run_counts;   ///< the runs form a grid: this many along each outer dimension,
  std::vector<std::uint64_t> run_strides;  ///< and this many bytes of the file from one to the next
  bool in_one_request = true;
  std::uint64_t staged_bytes = 0;  ///< that the box takes in staging, gaps included if they are read
  std::uint64_t requests = 0;
  Shape staged_strides;  ///< elements, for each dimension of the box as it lies in staging
};

/// Runs whose gaps are shorter than this are read together with the gaps: below a page of memory or disk a
/// gap costs less than a request of its own.
inline constexpr std::uint64_t longest_gap_read = 4096;

/// Plans the reading of a box of a tensor of that shape and element size (bytes) whose data begins at `begin`
/// in its file.
BoxReading reading_of(std::uint64_t begin, const Shape& shape, std::uint64_t element_bytes, const Box& box);

/// A part of a transfer that fits into one staging buffer.
struct ReadTask {
  std::uint32_t transfer = 0;  ///< index into LoadPlan::transfers
  Box box;                     ///< of the source tensor, inside the transfer's source_box
  BoxReading weights;
  BoxReading scales;  ///< staged_bytes 0 where the transfer has none
  Box scale_box;
};

/// Where the scales begin in a staging buffer that holds this task's weights.
std::uint64_t scales_offset_in_staging(const ReadTask& task);

/// Cuts a plan's transfers into tasks that take at most `buffer_bytes` of staging each, in the plan's order.
/// Along rows the cuts fall on multiples of 64 where they can, so that transposed destinations are written in
/// whole cache lines. buffer_bytes must be at least 4096.
std::vector<ReadTask> cut_into_tasks(const LoadPlan& plan, const Catalog& catalog,
                                     std::uint64_t buffer_bytes);

}  // namespace shardwright
