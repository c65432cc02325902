#include "storage/write/export_tasks.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/load/transfers.h"

namespace shardwright {
namespace {

std::uint64_t staged_bytes(const Transfer& transfer, const Box& box, DType stored, const TaskBounds& bounds) {
  const std::uint64_t elements = unsigned_of(bytes_of_box(stored, box));
  if (!transfer.encoding.scaled) return elements;
  return elements +
         unsigned_of(volume(scale_box_of(transfer.encoding, box).size) * bytes_of(transfer.encoding.scale)) +
         unsigned_of(box.size[0]) * bounds.more_for_each_row;
}

/// The shared scales by weight, so that a transfer finds those of its rows.
class SharedColumns {
 public:
  explicit SharedColumns(const std::vector<BlockColumn>& columns) {
    for (const BlockColumn& column : columns) by_weight_[column.weight].push_back(&column);
  }

  std::vector<std::uint8_t> of(const std::string& weight, std::int64_t block, std::int64_t first_row,
                               std::int64_t rows) const {
    const auto columns = by_weight_.find(weight);
    if (columns != by_weight_.end()) {
      for (const BlockColumn* column : columns->second) {
        const std::int64_t skipped = first_row - column->first_row;
        if (column->block != block || skipped < 0 || skipped + rows > std::ssize(column->scales)) continue;
        const auto begin = column->scales.begin() + skipped;
        return {begin, begin + rows};
      }
    }
    throw Error(ErrorKind::mismatch,
                weight + ": a rank's part of it begins or ends inside of a 1 x 32 block (columns " +
                    std::to_string(32 * block) +
                    " and on), whose scale the ranks have not agreed on; "
                    "save with shardwright.SavePlanner, which sees to it");
  }

 private:
  std::map<std::string, std::vector<const BlockColumn*>> by_weight_;
};

void find_shared(const SourceTensor& stored, const SharedColumns& shared, ExportTransfer& exported) {
  const Box& box = exported.transfer->source_box;
  const std::int64_t block = exported.transfer->encoding.block_columns;
  const std::int64_t end = box.offset[1] + box.size[1];
  if (box.offset[1] % block != 0)
    exported.first = shared.of(stored.name, box.offset[1] / block, box.offset[0], box.size[0]);
  if (end % block != 0 && end != stored.shape[1])
    exported.last = shared.of(stored.name, (end - 1) / block, box.offset[0], box.size[0]);
}

}  // namespace

void cut_task(const ExportTask& task, const Transfer& transfer, DType stored, const TaskBounds& bounds,
              std::vector<ExportTask>& tasks) {
  const Box& box = task.box;
  if (is_empty(box)) return;
  // Cut along the outermost dimension that it can be, between blocks, where the box is too large.
  const std::uint64_t bytes = staged_bytes(transfer, box, stored, bounds);
  std::int64_t grid = 1;
  std::int64_t strip = 0;
  std::size_t d = 0;
  for (; bytes > bounds.bytes && d < box.size.size(); ++d) {
    const std::uint64_t per_index = (bytes + unsigned_of(box.size[d]) - 1) / unsigned_of(box.size[d]);
    strip = static_cast<std::int64_t>(std::max<std::uint64_t>(1, bounds.bytes / per_index));
    grid = transfer.encoding.scaled ? block_along(transfer.encoding, box.size.size(), d) : 1;
    strip = std::max(grid, strip - strip % grid);
    if (strip - box.offset[d] % grid < box.size[d]) break;
  }
  if (bytes <= bounds.bytes || d == box.size.size()) {
    tasks.push_back(task);
    return;
  }
  const std::int64_t end = box.offset[d] + box.size[d];
  for (std::int64_t begin = box.offset[d]; begin < end;) {
    Box part = box;
    part.offset[d] = begin;
    part.size[d] = std::min(strip - begin % grid, end - begin);
    begin += part.size[d];
    cut_task({task.transfer, std::move(part)}, transfer, stored, bounds, tasks);
  }
}

StridedMemory values_of(const Lattice& in_local, const TensorSpec& spec) {
  StridedMemory values{static_cast<const std::byte*>(spec.data), strides_along(in_local, spec.local_strides)};
  values.data += elements_to(in_local.first, spec.local_strides) * bytes_of(spec.dtype);
  return values;
}

StridedMemory values_of(const Transfer& transfer, const Box& part, const TensorSpec& spec) {
  StridedMemory values = values_of(written_lattice(transfer), spec);
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < part.offset.size(); ++i)
    offset += (part.offset[i] - transfer.source_box.offset[i]) * values.strides[i];
  values.data += offset * bytes_of(spec.dtype);
  return values;
}

ValueTile tile_of(const StridedMemory& values, DType dtype, const Box& box) {
  return {values.data, dtype, box.size[0], box.size[1], values.strides[0], values.strides[1]};
}

SharedScales ExportTasks::shared_scales(const ExportTask& task) const {
  const ExportTransfer& exported = transfers[task.transfer];
  const Box& all = exported.transfer->source_box;
  const std::int64_t row = task.box.offset[0] - all.offset[0];
  const bool is_left = task.box.offset[1] == all.offset[1];
  const bool is_right = task.box.offset[1] + task.box.size[1] == all.offset[1] + all.size[1];
  return {is_left && !exported.first.empty() ? exported.first.data() + row : nullptr,
          is_right && !exported.last.empty() ? exported.last.data() + row : nullptr};
}

ExportTasks export_tasks(const PartsToWrite& parts, const Catalog& catalog, const LoadPlan& plan,
                         const std::function<bool(const SourceTensor&)>& shares_scales,
                         const std::function<TaskBounds(const TensorSpec&)>& bounds) {
  ExportTasks found;
  const SharedColumns shared(parts.shared_scales);
  for (const Transfer& transfer : plan.transfers) {
    if (is_empty(transfer.source_box)) continue;
    const SourceTensor& stored = catalog.tensors[transfer.source];
    found.transfers.push_back({&transfer, {}, {}});
    if (transfer.encoding.scaled && shares_scales(stored))
      find_shared(stored, shared, found.transfers.back());
    cut_task({found.transfers.size() - 1, transfer.source_box}, transfer, stored.dtype,
             bounds(parts.specs[transfer.destination]), found.tasks);
  }
  return found;
}

}  // namespace shardwright
