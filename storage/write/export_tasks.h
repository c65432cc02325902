#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/encode.h"
#include "planner/load/load_plan.h"
#include "storage/strided_memory.h"
#include "storage/write/export_share.h"

namespace shardwright {

/// A size, none of which is negative, as bytes of memory are counted.
inline std::uint64_t unsigned_of(std::int64_t size) { return static_cast<std::uint64_t>(size); }

/// The values of a lattice of the local tensor, with a stride for each factor.
StridedMemory values_of(const Lattice& in_local, const TensorSpec& spec);

/// The native values of a part of the transfer's source box, with a stride for each dimension of that.
StridedMemory values_of(const Transfer& transfer, const Box& part, const TensorSpec& spec);

ValueTile tile_of(const StridedMemory& values, DType dtype, const Box& box);

/// A transfer, and the scales of the blocks that it cuts, one for each of its rows.
struct ExportTransfer {
  const Transfer* transfer = nullptr;
  std::vector<std::uint8_t> first;  ///< of the blocks that its first columns are in; empty if they are whole
  std::vector<std::uint8_t> last;
};

/// A part of a transfer that is staged at a time; cuts no block that the transfer does not cut.
struct ExportTask {
  std::size_t transfer = 0;
  Box box;  ///< of the HF tensor
};

struct ExportTasks {
  std::vector<ExportTransfer> transfers;
  std::vector<ExportTask> tasks;

  /// The scales of the blocks that the task's box cuts; see encode().
  SharedScales shared_scales(const ExportTask& task) const;
};

/// How large a task may be: bytes of elements and scales, and what each row takes beside them.
struct TaskBounds {
  std::uint64_t bytes = 0;
  std::uint64_t more_for_each_row = 0;
};

/// Cuts a task of a transfer into tasks within bounds, and adds them. `stored`: the dtype that is stored.
void cut_task(const ExportTask& task, const Transfer& transfer, DType stored, const TaskBounds& bounds,
              std::vector<ExportTask>& tasks);

/// The tasks that the plan comes to. `shares_scales` tells for which weights scales are told by columns of
/// blocks. Throws Error(mismatch) for blocks whose shared scales are not there then.
ExportTasks export_tasks(const PartsToWrite& parts, const Catalog& catalog, const LoadPlan& plan,
                         const std::function<bool(const SourceTensor&)>& shares_scales,
                         const std::function<TaskBounds(const TensorSpec&)>& bounds);

}  // namespace shardwright
