#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/load/load_plan.h"
#include "storage/boxes/read_costs.h"

namespace shardwright {

/// How a box of a row-major tensor is read from its file into staging.
///
/// The box consists of runs of contiguous bytes. Where reading the gaps between them costs less than a
/// request for each run, one request reads the whole span, and staging holds it as the file does; otherwise,
/// and for runs as long as ReadCosts says, each run is a request of its own and staging holds the runs back
/// to back.
struct BoxReading {
  std::uint64_t begin = 0;                 ///< file offset of the first byte
  std::uint64_t run_bytes = 0;             ///< length of a run
  std::vector<std::uint64_t> run_counts;   ///< the runs form a grid: this many along each outer dimension,
  std::vector<std::uint64_t> run_strides;  ///< and this many bytes of the file from one to the next
  bool in_one_request = true;
  std::uint64_t staged_bytes = 0;  ///< that the box takes in staging, gaps included if they are read
  std::uint64_t requests = 0;
  std::uint64_t runs = 0;
  Shape staged_strides;  ///< elements, for each dimension of the box as it lies in staging
};

/// Plans the reading of a box of a tensor of that shape and element size (bytes) whose data begins at `begin`
/// in its file.
BoxReading reading_of(std::uint64_t begin, const Shape& shape, std::uint64_t element_bytes, const Box& box,
                      const ReadCosts& costs = costs_of_cached_files);

/// The same for a box of a tensor (or chunk) that is seen in that shape. Of elements that share bytes,
/// staging holds all bytes that have one of the box: element `box.offset.back() % 2` of the first of them is
/// the box's first.
BoxReading reading_of(const SourceTensor& tensor, const Shape& shape, const Box& box,
                      const ReadCosts& costs = costs_of_cached_files);

/// Calls visit(file offset) for each run of a box that is not read in one request, in the order of staging.
void for_each_run(const BoxReading& reading, const std::function<void(std::uint64_t)>& visit);

/// A part of a transfer that fits into one staging buffer.
struct ReadTask {
  std::uint32_t transfer = 0;  ///< index into LoadPlan::transfers
  std::uint32_t source = 0;    ///< the transfer's source and scales: indices into Catalog::tensors; -1: none
  std::int64_t scale_source = -1;
  Shape shape;  ///< that the source is seen in: see Transfer::source_view
  Box box;      ///< of that, inside the transfer's source_box
  BoxReading weights;
  BoxReading scales;  ///< staged_bytes 0 where the transfer has none
  Shape scale_shape;  ///< that the tensor of scales is seen in
  Box scale_box;      ///< of that, likewise
  float global = 1;   ///< global scale; 1 where the transfer has none

  std::uint64_t bytes() const { return weights.staged_bytes + scales.staged_bytes; }
};

/// What reading a plan's transfers comes to.
struct ReadingFigures {
  std::uint64_t bytes = 0;
  std::uint64_t requests = 0;        ///< if staging were large enough for a transfer
  std::int64_t boxes_with_gaps = 0;  ///< boxes that are read with the gaps in them,
  std::int64_t boxes_in_pieces = 0;  ///< and those whose runs are read one by one

  void count(const BoxReading& reading);
};

ReadingFigures reading_figures(const LoadPlan& plan, const Catalog& catalog,
                               const ReadCosts& costs = costs_of_cached_files);

/// Where the scales begin in a staging buffer that holds this task's weights.
std::uint64_t scales_offset_in_staging(const ReadTask& task);

/// What the task takes of a staging buffer.
std::uint64_t staged_bytes(const ReadTask& task);

/// How a box whose reading stages more bytes than there is room for is cut: into strips of so many indices
/// along its outermost dimension of more than one, multiples of 64 where they can be.
struct Strips {
  std::size_t dimension = 0;
  std::int64_t width = 1;
};

Strips strips_of(const Box& box, std::uint64_t staged_bytes, std::uint64_t room);

/// Cuts a plan's transfers into tasks that take at most `buffer_bytes` of staging each, in the plan's order,
/// one at a time: all of them at once could take more memory than the staging. Along rows the cuts fall on
/// multiples of 64 where they can, so that transposed destinations are written in whole cache lines. Plan and
/// catalog must outlive it.
class TaskCutter {
 public:
  /// `costs` holds an entry for each of the catalog's files, or is empty: then all count as cached.
  /// buffer_bytes must be at least 4096.
  TaskCutter(const LoadPlan& plan, const Catalog& catalog, std::uint64_t buffer_bytes,
             std::vector<ReadCosts> costs = {});

  /// The next task; false when there is none left.
  bool next(ReadTask& task);

 private:
  /// A box that is handed out in strips.
  struct OpenBox {
    Box box;
    Strips strips;
    std::int64_t begin;
  };

  ReadTask task_for(std::uint32_t transfer, const Box& box) const;
  const ReadCosts& costs_of(const SourceTensor& tensor) const;

  const LoadPlan& plan_;
  const Catalog& catalog_;
  const std::uint64_t buffer_bytes_;
  const std::vector<ReadCosts> costs_;
  std::uint32_t next_transfer_ = 0;
  std::vector<OpenBox> open_;  // of transfer next_transfer_ - 1, innermost last
};

}  // namespace shardwright
