#include "storage/boxes/box_reading.h"

#include <algorithm>
#include <utility>

#include "planner/geometry/byte_boxes.h"
#include "planner/load/transfers.h"
#include "storage/rounded_up.h"

namespace shardwright {
namespace {

constexpr std::uint64_t staging_alignment = 64;
constexpr std::int64_t rows_in_a_cache_line = 64;

/// Elements of any size that fill whole cells (storage/format/row_checksums.h).
constexpr std::int64_t indices_in_cells = 65'536;

std::uint64_t unsigned_of(std::int64_t value) { return static_cast<std::uint64_t>(value); }

}  // namespace

BoxReading reading_of(std::uint64_t begin, const Shape& shape, std::uint64_t element_bytes, const Box& box,
                      const ReadCosts& costs) {
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
  reading.runs = runs;
  const bool costs_less = static_cast<double>(span - needed) * costs.seconds_per_byte <=
                          static_cast<double>(runs - 1) * costs.seconds_per_request;
  const bool is_apart = costs.bytes_of_runs_apart != 0 && reading.run_bytes >= costs.bytes_of_runs_apart &&
                        (span - needed) > needed / 20;
  reading.in_one_request = costs_less && !is_apart;
  reading.staged_bytes = reading.in_one_request ? span : needed;
  reading.requests = reading.in_one_request ? 1 : runs;
  reading.staged_strides = reading.in_one_request ? file_strides : contiguous_strides(box.size);
  return reading;
}

BoxReading reading_of(const SourceTensor& tensor, const Shape& shape, const Box& box,
                      const ReadCosts& costs) {
  BoxReading reading = reading_of(tensor.begin, in_units(tensor.dtype, shape),
                                  unsigned_of(unit_bytes(tensor.dtype)), in_units(tensor.dtype, box), costs);
  reading.staged_strides = strides_in_elements(tensor.dtype, std::move(reading.staged_strides));
  return reading;
}

void for_each_run(const BoxReading& reading, const std::function<void(std::uint64_t)>& visit) {
  std::vector<std::uint64_t> index(reading.run_counts.size(), 0);
  std::uint64_t offset = reading.begin;
  for (std::uint64_t run = 0; run < reading.runs; ++run) {
    visit(offset);
    for (std::size_t d = index.size(); d-- > 0;) {
      offset += reading.run_strides[d];
      if (++index[d] < reading.run_counts[d]) break;
      offset -= reading.run_counts[d] * reading.run_strides[d];
      index[d] = 0;
    }
  }
}

std::uint64_t scales_offset_in_staging(const ReadTask& task) {
  return rounded_up(task.weights.staged_bytes, staging_alignment);
}

std::uint64_t staged_bytes(const ReadTask& task) {
  return scales_offset_in_staging(task) + task.scales.staged_bytes;
}

void ReadingFigures::count(const BoxReading& reading) {
  bytes += reading.staged_bytes;
  requests += reading.requests;
  if (reading.runs > 1) (reading.in_one_request ? boxes_with_gaps : boxes_in_pieces) += 1;
}

ReadingFigures reading_figures(const LoadPlan& plan, const Catalog& catalog, const ReadCosts& costs) {
  ReadingFigures figures;
  const auto count = [&](const SourceTensor& tensor, const Shape& shape, const Box& box) {
    figures.count(reading_of(tensor, shape, box, costs));
  };
  for (const Transfer& transfer : plan.transfers) {
    if (is_empty(transfer.source_box)) continue;
    const SourceTensor& source = catalog.tensors[transfer.source];
    count(source, seen_shape(transfer, source), transfer.source_box);
    if (transfer.scales < 0) continue;
    const SourceTensor& scales = catalog.tensors[static_cast<std::size_t>(transfer.scales)];
    count(scales, seen_scale_shape(transfer, scales), transfer.scale_box);
  }
  return figures;
}

TaskCutter::TaskCutter(const LoadPlan& plan, const Catalog& catalog, std::uint64_t buffer_bytes,
                       std::vector<ReadCosts> costs)
    : plan_(plan), catalog_(catalog), buffer_bytes_(buffer_bytes), costs_(std::move(costs)) {}

Strips strips_of(const Box& box, std::uint64_t staged_bytes, std::uint64_t room) {
  Strips strips;
  while (strips.dimension + 1 < box.size.size() && box.size[strips.dimension] == 1) ++strips.dimension;
  // A strip is shorter than the box, whose bytes are more than there is room for.
  const std::uint64_t indices = unsigned_of(box.size[strips.dimension]);
  const std::uint64_t bytes_per_index = (staged_bytes + indices - 1) / indices;
  strips.width = static_cast<std::int64_t>(std::max<std::uint64_t>(1, room / bytes_per_index));
  if (strips.width > rows_in_a_cache_line) strips.width -= strips.width % rows_in_a_cache_line;
  // Long rows are cut where their checksums are, if they begin there.
  if (strips.dimension + 1 == box.size.size() && strips.width > indices_in_cells)
    strips.width -= strips.width % indices_in_cells;
  return strips;
}

bool TaskCutter::next(ReadTask& task) {
  for (;;) {
    Box box;
    if (open_.empty()) {
      if (next_transfer_ == plan_.transfers.size()) return false;
      box = plan_.transfers[next_transfer_++].source_box;
      if (is_empty(box)) continue;
    } else {
      auto& [whole, strips, begin] = open_.back();
      box = whole;
      const std::int64_t size = box.size[strips.dimension];
      box.offset[strips.dimension] += begin;
      box.size[strips.dimension] = std::min(strips.width, size - begin);
      begin += strips.width;
      if (begin >= size) open_.pop_back();
    }
    task = task_for(next_transfer_ - 1, box);
    const std::uint64_t staged = staged_bytes(task);
    if (staged <= buffer_bytes_) return true;
    const std::uint64_t room = buffer_bytes_ - (task.scales.staged_bytes > 0 ? staging_alignment : 0);
    open_.push_back({box, strips_of(box, staged, room), 0});
  }
}

const ReadCosts& TaskCutter::costs_of(const SourceTensor& tensor) const {
  return costs_.empty() ? costs_of_cached_files : costs_[tensor.file];
}

ReadTask TaskCutter::task_for(std::uint32_t index, const Box& box) const {
  const Transfer& transfer = plan_.transfers[index];
  const SourceTensor& source = catalog_.tensors[transfer.source];
  ReadTask task;
  task.transfer = index;
  task.source = transfer.source;
  task.scale_source = transfer.scales;
  task.shape = seen_shape(transfer, source);
  task.box = box;
  task.weights = reading_of(source, task.shape, box, costs_of(source));
  if (transfer.scales >= 0) {
    const SourceTensor& scales = catalog_.tensors[static_cast<std::size_t>(transfer.scales)];
    task.scale_shape = seen_scale_shape(transfer, scales);
    task.scale_box = scale_box_of_part(transfer, box);
    task.scales = reading_of(scales, task.scale_shape, task.scale_box, costs_of(scales));
  }
  return task;
}

}  // namespace shardwright
