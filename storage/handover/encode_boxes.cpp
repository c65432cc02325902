#include "storage/handover/encode_boxes.h"

#include <cstring>
#include <utility>

#include "kernels/encode.h"
#include "planner/geometry/byte_boxes.h"
#include "storage/boxes/placing.h"

namespace shardwright {
namespace {

/// Copies an encoded box to its place in a larger one, row-major in memory.
void copy_into(const EncodedBox& encoded, DType dtype, const EncodedBox& whole, std::byte* to) {
  const Box box = in_units(dtype, encoded.box);
  const Box all = in_units(dtype, whole.box);
  const std::int64_t unit = unit_bytes(dtype);
  Shape from_strides = contiguous_strides(box.size);
  if (encoded.row_bytes >= 0) from_strides[from_strides.size() - 2] = encoded.row_bytes;
  const Shape to_strides = contiguous_strides(all.size);
  std::vector<CopiedDimension> dimensions;
  for (std::size_t d = 0; d < box.size.size(); ++d) {
    dimensions.push_back({box.size[d], from_strides[d] * unit, to_strides[d] * unit});
    to += (box.offset[d] - all.offset[d]) * to_strides[d] * unit;
  }
  dimensions.push_back({unit, 1, 1});
  const std::vector<CopiedDimension> joined = joined_dimensions(dimensions);
  if (joined.empty()) {
    *to = *encoded.bytes;
  } else if (joined.size() == 1 && joined[0].source_stride == 1 && joined[0].destination_stride == 1) {
    std::memcpy(to, encoded.bytes, static_cast<std::size_t>(joined[0].size));
  } else {
    copy_box(dimensions, DType::U8, DType::U8, encoded.bytes, to);
  }
}

/// Whether the values of a column are neighbours in memory, and are encoded from there.
bool is_upright(const EncodingSource& source, const ExportTask& task, const TensorSpec& spec) {
  const Transfer& transfer = source.transfer_of(task);
  if (!transfer.encoding.scaled || spec.device == DeviceKind::cuda || source.templates() != nullptr ||
      !is_in_columns(source.layout(), source.layout().catalog.tensors[transfer.source]))
    return false;
  const StridedMemory values = values_of(transfer, task.box, spec);
  return values.strides[0] == 1 && values.strides[1] != 1;
}

/// Cuts a matrix into squares of so many bytes, strips of rows one behind the other: columns of values are
/// runs as long as the rows of their codes.
void cut_upright(const ExportTask& task, const Encoding& encoding, std::uint64_t bytes,
                 std::vector<ExportTask>& parts) {
  const auto most = static_cast<std::int64_t>(bytes);
  std::int64_t side = upright_rows;
  while ((side + upright_rows) * (side + upright_rows) <= most) side += upright_rows;
  const Box& box = task.box;
  const std::int64_t columns = std::min(side, box.size[1]);
  const std::int64_t of_row =
      columns + columns / encoding.block_columns + 2;  // with scales, also of cut blocks
  std::int64_t rows = std::max<std::int64_t>(1, most / of_row);
  if (rows > upright_rows) rows -= rows % upright_rows;
  const Shape end = {box.offset[0] + box.size[0], box.offset[1] + box.size[1]};
  for (std::int64_t row = box.offset[0]; row < end[0]; row += rows) {
    for (std::int64_t column = box.offset[1], width = 0; column < end[1]; column += width) {
      width = std::min(side - column % encoding.block_columns, end[1] - column);
      parts.push_back({task.transfer, {{row, column}, {std::min(rows, end[0] - row), width}}});
    }
  }
}

}  // namespace

EncodingSource::EncodingSource(const std::string& share, const std::vector<TensorSpec>& specs,
                               const RankState& state, const ExportRequest& request, PartsOfRank which,
                               std::size_t most_bytes, const ExportWriting& options)
    : share_(shared_export(share, specs, state, request, {}, which)),
      plan_(plan_with_memory(share_, specs, options.devices)),
      options_(options),
      work_(export_tasks(
          share_.parts, layout().catalog, plan_,
          [this](const SourceTensor& weight) { return is_in_columns(layout(), weight); },
          [most_bytes](const TensorSpec&) {
            return TaskBounds{most_bytes, 0};
          })) {
  if (layout().template_catalog != nullptr) templates_.emplace(*layout().template_catalog);
}

std::size_t bytes_of(const EncodedBox& encoded, const Catalog& catalog) {
  return static_cast<std::size_t>(bytes_of_box(catalog.tensors[encoded.tensor].dtype, encoded.box));
}

void cut_for_threads(const EncodingSource& source, const EncodingResources& resources, const ExportTask& task,
                     std::vector<ExportTask>& parts) {
  const ExportLayout& layout = source.layout();
  const Transfer& transfer = source.transfer_of(task);
  const TensorSpec& spec = source.parts().specs[transfer.destination];
  const TaskBounds bounds = task_bounds(resources, layout, spec);
  if (!is_empty(task.box) && is_upright(source, task, spec))
    return cut_upright(task, transfer.encoding, bounds.bytes, parts);
  cut_task(task, transfer, layout.catalog.tensors[transfer.source].dtype, bounds, parts);
}

EncodingFigures encode_into_memory(const EncodingSource& source, std::span<const TaskInMemory> tasks) {
  const ExportLayout& layout = source.layout();
  const std::vector<TensorSpec>& specs = source.parts().specs;
  std::vector<TensorOnDevice> on_devices;
  std::size_t bytes = 0;
  for (const TaskInMemory& task : tasks) {
    const TensorSpec& spec = specs[source.transfer_of(task.task).destination];
    if (spec.device == DeviceKind::cuda) on_devices.push_back({spec.fqn, spec.device_index});
    bytes += bytes_of(task.boxes.elements, layout.catalog);
  }
  DevicesInUse devices(on_devices, source.options().devices);
  const EncodingResources resources = resources_for(source.options(), specs, devices, bytes);
  std::vector<ExportTask> parts;
  std::vector<std::size_t> task_of_part;
  for (std::size_t n = 0; n < tasks.size(); ++n) {
    cut_for_threads(source, resources, tasks[n].task, parts);
    task_of_part.resize(parts.size(), n);
  }
  EncodingFigures figures;
  devices.run([&] {
    figures = encode_tasks(
        source.parts(), layout, source.work(), parts, source.templates(), devices, resources,
        source.options().progress, [&](std::size_t part, const EncodedBox& encoded) {
          const TaskInMemory& task = tasks[task_of_part[part]];
          const bool is_scales = task.boxes.scales && encoded.tensor == task.boxes.scales->tensor;
          const EncodedBox& whole = is_scales ? *task.boxes.scales : task.boxes.elements;
          std::byte* to = is_scales ? task.scales : task.elements;
          if (to == nullptr) return;
          copy_into(encoded, layout.catalog.tensors[encoded.tensor].dtype, whole, to);
        });
  });
  return figures;
}

}  // namespace shardwright
