#include "storage/box_reading.h"

#include <algorithm>

namespace shardwright {
namespace {

constexpr std::uint64_t staging_alignment = 64;
constexpr std::int64_t rows_in_a_cache_line = 64;

std::uint64_t unsigned_of(std::int64_t value) { return static_cast<std::uint64_t>(value); }

class TaskCutter {
 public:
  TaskCutter(const LoadPlan& plan, const Catalog& catalog, std::uint64_t buffer_bytes)
      : plan_(plan), catalog_(catalog), buffer_bytes_(buffer_bytes) {}

  std::vector<ReadTask> cut() {
    for (std::size_t t = 0; t < plan_.transfers.size(); ++t) {
      add(static_cast<std::uint32_t>(t), plan_.transfers[t].source_box);
    }
    return std::move(tasks_);
  }

 private:
  void add(std::uint32_t transfer, const Box& box) {
    if (is_empty(box)) return;
    ReadTask task = task_for(transfer, box);
    const std::uint64_t staged = scales_offset_in_staging(task) + task.scales.staged_bytes;
    if (staged <= buffer_bytes_) {
      tasks_.push_back(std::move(task));
      return;
    }
    // Cut the outermost dimension that has more than one index into strips that should fit.
    std::size_t d = 0;
    while (d + 1 < box.size.size() && box.size[d] == 1) ++d;
    // A strip is shorter than the box, whose bytes are more than the buffer's.
    const std::uint64_t indices = unsigned_of(box.size[d]);
    const std::uint64_t bytes_per_index = (staged + indices - 1) / indices;
    const std::uint64_t room = buffer_bytes_ - (task.scales.staged_bytes > 0 ? staging_alignment : 0);
    auto strip = static_cast<std::int64_t>(std::max<std::uint64_t>(1, room / bytes_per_index));
    if (strip > rows_in_a_cache_line) strip -= strip % rows_in_a_cache_line;
    for (std::int64_t begin = 0; begin < box.size[d]; begin += strip) {
      Box part = box;
      part.offset[d] += begin;
      part.size[d] = std::min(strip, box.size[d] - begin);
      add(transfer, part);
    }
  }

  ReadTask task_for(std::uint32_t index, const Box& box) const {
    const Transfer& transfer = plan_.transfers[index];
    const SourceTensor& source = catalog_.tensors[transfer.source];
    ReadTask task;
    task.transfer = index;
    task.box = box;
    task.weights =
        reading_of(source.begin, source.shape, static_cast<std::uint64_t>(bytes_of(source.dtype)), box);
    if (transfer.scales >= 0) {
      const SourceTensor& scales = catalog_.tensors[static_cast<std::size_t>(transfer.scales)];
      task.scale_box = scale_box_of_part(transfer, box);
      task.scales = reading_of(scales.begin, scales.shape, static_cast<std::uint64_t>(bytes_of(scales.dtype)),
                               task.scale_box);
    }
    return task;
  }

  const LoadPlan& plan_;
  const Catalog& catalog_;
  const std::uint64_t buffer_bytes_;
  std::vector<ReadTask> tasks_;
};

}  // namespace

BoxReading reading_of(std::uint64_t begin, const Shape& shape, std::uint64_t element_bytes, const Box& box) {
  const Shape file_strides = contiguous_strides(shape);
  BoxReading reading;
  reading.begin = begin;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    reading.begin += unsigned_of(box.offset[d] * file_strides[d]) * element_bytes;
  }
  // The innermost dimensions that the box covers whole, and the next one out, make up a run.
  std::size_t outer = shape.size();
  std::int64_t run_elements = 1;
  while (outer > 0) {
    --outer;
    run_elements *= box.size[outer];
    if (box.size[outer] != shape[outer]) break;
  }
  reading.run_bytes = unsigned_of(run_elements) * element_bytes;
  std::uint64_t span = reading.run_bytes;
  std::uint64_t runs = 1;
  for (std::size_t d = 0; d < outer; ++d) {
    reading.run_counts.push_back(unsigned_of(box.size[d]));
    reading.run_strides.push_back(unsigned_of(file_strides[d]) * element_bytes);
    span += (unsigned_of(box.size[d]) - 1) * reading.run_strides[d];
    runs *= unsigned_of(box.size[d]);
  }
  const std::uint64_t needed = runs * reading.run_bytes;
  reading.in_one_request = span - needed <= (runs - 1) * longest_gap_read;
  reading.staged_bytes = reading.in_one_request ? span : needed;
  reading.requests = reading.in_one_request ? 1 : runs;
  reading.staged_strides = reading.in_one_request ? file_strides : contiguous_strides(box.size);
  return reading;
}

std::uint64_t scales_offset_in_staging(const ReadTask& task) {
  return (task.weights.staged_bytes + staging_alignment - 1) / staging_alignment * staging_alignment;
}

std::vector<ReadTask> cut_into_tasks(const LoadPlan& plan, const Catalog& catalog,
                                     std::uint64_t buffer_bytes) {
  return TaskCutter(plan, catalog, buffer_bytes).cut();
}

}  // namespace shardwright
