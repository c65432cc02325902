#include "storage/write/encode_tasks.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "kernels/encode.h"
#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/load/transfers.h"
#include "storage/boxes/placing.h"
#include "storage/count_progress.h"
#include "storage/seconds.h"
#include "storage/threads.h"
#include "storage/write/encode_part.h"
#include "storage/write/find_numbers.h"

namespace shardwright {
namespace {

/// Staging that a thread gets if the caller does not say: one request writes that much.
constexpr std::size_t default_buffer_bytes = std::size_t{4} << 20;
constexpr std::size_t smallest_buffer_bytes = std::size_t{64} << 10;
constexpr int most_threads = 1024;

/// Pinned memory for all threads if the caller does not say.
constexpr std::size_t default_pinned_bytes = std::size_t{128} << 20;

/// The scales of a task in columns: those of blocks that begin in its box.
EncodedBox scales_in_columns(const ExportTask& task, const Transfer& transfer, const SourceTensor& scales) {
  EncodedBox encoded{static_cast<std::uint32_t>(transfer.scales), scales.shape,
                     scale_box_of(transfer.encoding, task.box), nullptr, -1};
  // The scale of a block that begins to the left is written by whoever has its beginning.
  if (task.box.offset[1] % transfer.encoding.block_columns == 0) return encoded;
  encoded.row_bytes = encoded.box.size[1];
  ++encoded.box.offset[1];
  --encoded.box.size[1];
  return encoded;
}

/// The threads of one encoding and what they share.
class Encoder {
 public:
  Encoder(const PartsToWrite& parts, const ExportLayout& layout, const ExportTasks& work,
          std::span<const ExportTask> tasks, const TemplateCodes* templates, const ReceiveBox& receive)
      : parts_(parts),
        layout_(layout),
        catalog_(layout.catalog),
        work_(work),
        tasks_(tasks),
        template_(templates),
        receive_(receive) {}

  EncodingFigures run(const DevicesInUse& devices, const EncodingResources& resources, Progress* progress) {
    for (const ExportTask& task : tasks_) expect_in_all(progress, bytes_of_task(task));
    std::vector<Thread> threads(static_cast<std::size_t>(resources.gathering.threads));
    EncodingFigures figures;
    figures.gathered =
        gather_on_threads(tasks_.size(), devices, resources.gathering,
                          [&](std::size_t number, std::size_t thread, DeviceGatherers& gatherers) {
                            const TensorSpec& spec = parts_.specs[transfer_of(tasks_[number]).destination];
                            if (spec.device == DeviceKind::cuda) {
                              gather(number, spec, gatherers.of(spec.device_index), threads[thread]);
                            } else {
                              encode(number, spec, threads[thread]);
                            }
                            count_done(progress, bytes_of_task(tasks_[number]));
                          });
    for (const Thread& thread : threads) {
      figures.staging_bytes += thread.size;
      figures.receiving += thread.receiving;
    }
    return figures;
  }

 private:
  /// A thread's staging for what is in CPU memory, which grows to the largest task, and the time it has spent
  /// with handing on.
  struct Thread {
    std::unique_ptr<std::byte[]> data;
    std::size_t size = 0;
    double receiving = 0;

    std::byte* room_for(std::size_t bytes) {
      if (size < bytes) {
        data.reset();
        data = std::make_unique_for_overwrite<std::byte[]>(bytes);
        size = bytes;
      }
      return data.get();
    }
  };

  const Transfer& transfer_of(const ExportTask& task) const {
    return *work_.transfers[task.transfer].transfer;
  }

  /// Of its elements, as they are stored.
  std::uint64_t bytes_of_task(const ExportTask& task) const {
    return unsigned_of(bytes_of_box(catalog_.tensors[transfer_of(task).source].dtype, task.box));
  }

  /// Encodes, converts or regroups values in CPU memory, and hands them on.
  void encode(std::size_t number, const TensorSpec& spec, Thread& thread) {
    const ExportTask& task = tasks_[number];
    const Transfer& transfer = transfer_of(task);
    const StridedMemory values = values_of(transfer, task.box, spec);
    if (transfer.encoding.scaled && template_ != nullptr)
      return encode_as_template(number, values, spec.dtype, thread);
    if (transfer.encoding.scaled && !is_in_columns(layout_, catalog_.tensors[transfer.source]))
      return encode_by_rule(number, values, spec, thread);
    if (transfer.encoding.scaled) {
      const std::int64_t elements = volume(task.box.size);
      const Shape scales = scale_box_of(transfer.encoding, task.box).size;
      std::byte* room = thread.room_for(unsigned_of(elements + volume(scales)));
      auto* encoded = reinterpret_cast<std::uint8_t*>(room);
      shardwright::encode(tile_of(values, spec.dtype, task.box),
                          task.box.offset[1] % transfer.encoding.block_columns, work_.shared_scales(task),
                          {encoded, task.box.size[1], encoded + elements, scales[1]});
      return hand_on(number, room, thread);
    }
    const DType stored = catalog_.tensors[transfer.source].dtype;
    const std::vector<CopiedDimension> dimensions =
        copied_dimensions(task.box.size, values.strides, contiguous_strides(task.box.size));
    if (stored == spec.dtype && is_one_run(dimensions)) return hand_on(number, values.data, thread);
    std::byte* room = thread.room_for(unsigned_of(volume(task.box.size) * bytes_of(stored)));
    copy_box(dimensions, spec.dtype, stored, values.data, room);
    hand_on(number, room, thread);
  }

  /// The same with the template's scales.
  void encode_as_template(std::size_t number, const StridedMemory& values, DType dtype, Thread& thread) {
    const ExportTask& task = tasks_[number];
    const Transfer& transfer = transfer_of(task);
    const SourceTensor& stored = catalog_.tensors[transfer.source];
    const std::vector<std::byte> codes = template_->encode(transfer, stored, task.box, values, dtype);
    hand_on(number, codes.data(), thread);
  }

  /// The same by the layout's rule.
  void encode_by_rule(std::size_t number, const StridedMemory& values, const TensorSpec& spec,
                      Thread& thread) {
    const ExportTask& task = tasks_[number];
    const Transfer& transfer = transfer_of(task);
    const WeightPart part{*layout_.quantize, transfer.encoding, catalog_.tensors[transfer.source], spec.fqn,
                          task.box};
    const PartBoxes boxes = shardwright::boxes_of(part);
    std::byte* codes = thread.room_for(boxes.code_bytes + boxes.scale_bytes);
    encode_part(part, values, spec.dtype, parts_.numbers, codes, codes + boxes.code_bytes);
    hand_on(number, codes, thread);
  }

  /// The same for values on a device: begins it, and hands on what has come.
  void gather(std::size_t number, const TensorSpec& spec, DeviceGatherer& gatherer, Thread& thread) {
    const ExportTask& task = tasks_[number];
    const Transfer& transfer = transfer_of(task);
    const SourceTensor& stored = catalog_.tensors[transfer.source];
    const StridedMemory values = values_of(transfer, task.box, spec);
    const std::string name = spec.fqn + " (to " + stored.name + ")";
    if (transfer.encoding.scaled && (template_ != nullptr || !is_in_columns(layout_, stored))) {
      // Values come as they are, and are encoded here.
      return gather_values(gatherer, values, spec.dtype, task.box, name,
                           [this, number, &task, &spec, &thread](const std::byte* bytes) {
                             const StridedMemory brought{bytes, contiguous_strides(task.box.size)};
                             if (template_ != nullptr)
                               return encode_as_template(number, brought, spec.dtype, thread);
                             encode_by_rule(number, brought, spec, thread);
                           });
    }
    const auto receive = [this, number, &thread](const std::byte* bytes) { hand_on(number, bytes, thread); };
    if (transfer.encoding.scaled) {
      return gatherer.encode(tile_of(values, spec.dtype, task.box),
                             task.box.offset[1] % transfer.encoding.block_columns, work_.shared_scales(task),
                             name, receive);
    }
    const std::vector<CopiedDimension> dimensions =
        copied_dimensions(task.box.size, values.strides, contiguous_strides(task.box.size));
    const auto bytes = static_cast<std::size_t>(volume(task.box.size) * bytes_of(stored.dtype));
    gatherer.begin(bytes, name, receive);
    if (stored.dtype == spec.dtype && is_one_run(dimensions)) return gatherer.copy(values.data, bytes);
    for_each_tile(dimensions, spec.dtype, stored.dtype, values.data, gatherer.stretch(bytes),
                  [&](const cuda::Placing& placing) { gatherer.place(placing); });
  }

  /// Hands on a task's elements, and the scales behind them if it has some.
  void hand_on(std::size_t number, const std::byte* bytes, Thread& thread) {
    const Clock::time_point begin = Clock::now();
    const ExportTask& task = tasks_[number];
    BoxesOfTask boxes = boxes_of(task, work_, parts_, layout_);
    EncodedBox& elements = boxes.elements;
    elements.bytes = bytes;
    if (!is_empty(elements.box)) receive_(number, elements);
    if (boxes.scales && !is_empty(boxes.scales->box)) {
      EncodedBox& scales = *boxes.scales;
      scales.bytes = bytes + bytes_of_box(catalog_.tensors[elements.tensor].dtype, elements.box);
      if (scales.row_bytes >= 0) ++scales.bytes;  // of the block that begins to the left
      receive_(number, scales);
    }
    thread.receiving += seconds_since(begin);
  }

  const PartsToWrite& parts_;
  const ExportLayout& layout_;
  const Catalog& catalog_;
  const ExportTasks& work_;
  const std::span<const ExportTask> tasks_;
  const TemplateCodes* template_;
  const ReceiveBox& receive_;
};

}  // namespace

EncodingResources resources_for(const ExportWriting& options, const std::vector<TensorSpec>& specs,
                                const DevicesInUse& devices, std::size_t bytes) {
  int threads = std::min(most_threads, options.threads > 0 ? options.threads : processors());
  std::size_t buffer_bytes = default_buffer_bytes;
  if (options.staging_bytes > 0) {
    if (options.staging_bytes < smallest_buffer_bytes) {
      throw Error(ErrorKind::argument, "staging_bytes is " + std::to_string(options.staging_bytes) +
                                           "; expected at least " + std::to_string(smallest_buffer_bytes));
    }
    threads = std::min(threads, static_cast<int>(std::min<std::size_t>(
                                    options.staging_bytes / smallest_buffer_bytes, most_threads)));
    buffer_bytes =
        std::min(4 * default_buffer_bytes, options.staging_bytes / static_cast<std::size_t>(threads));
  }
  if (!devices.any()) return {buffer_bytes, {threads, 0, 0}};

  // A thread may meet tensors in CPU memory and on every device.
  const std::size_t batches = DeviceGatherer::batch_count * devices.count();
  if (options.staging_bytes > 0) {
    const bool has_others = std::any_of(
        specs.begin(), specs.end(), [](const TensorSpec& spec) { return spec.device != DeviceKind::cuda; });
    buffer_bytes =
        options.staging_bytes / static_cast<std::size_t>(threads) / (batches + (has_others ? 1 : 0));
    buffer_bytes = std::min(4 * default_buffer_bytes, buffer_bytes);
  }
  std::size_t pinned_bytes = static_cast<std::size_t>(threads) * batches * buffer_bytes;
  if (options.staging_bytes == 0) pinned_bytes = std::min(pinned_bytes, default_pinned_bytes);
  pinned_bytes = std::min(pinned_bytes, std::max(bytes, smallest_buffer_bytes));
  return {buffer_bytes, gather_bounds(threads, pinned_bytes, devices.count(), options.devices.memory)};
}

TaskBounds task_bounds(const EncodingResources& resources, const ExportLayout& layout,
                       const TensorSpec& spec) {
  if (spec.device != DeviceKind::cuda) return TaskBounds{resources.buffer_bytes, 0};
  const std::size_t room = resources.gathering.block_bytes - DeviceGatherer::slack;
  // Values that are encoded here come in their own dtype: up to 8 times as many bytes as their codes.
  const bool is_encoded_here = layout.template_catalog != nullptr || layout.quantize != nullptr;
  return TaskBounds{is_encoded_here ? room / 8 : room, 2};
}

bool is_in_columns(const ExportLayout& layout, const SourceTensor& weight) {
  return layout.quantize != nullptr && layout.quantize->rule == EncodingRule::mxfp8 &&
         weight.shape.size() == 2;
}

Shape strides_of(const EncodedBox& encoded, DType dtype) {
  Shape strides = strides_in_elements(dtype, contiguous_strides(in_units(dtype, encoded.box).size));
  if (encoded.row_bytes >= 0) strides[strides.size() - 2] = encoded.row_bytes;
  return strides;
}

BoxesOfTask boxes_of(const ExportTask& task, const ExportTasks& work, const PartsToWrite& parts,
                     const ExportLayout& layout) {
  const Transfer& transfer = *work.transfers[task.transfer].transfer;
  const Catalog& catalog = layout.catalog;
  const SourceTensor& stored = catalog.tensors[transfer.source];
  BoxesOfTask boxes{{transfer.source, seen_shape(transfer, stored), task.box, nullptr, -1}, std::nullopt};
  if (!transfer.encoding.scaled) return boxes;
  if (layout.template_catalog != nullptr) {
    boxes.elements.box = TemplateCodes::written_box(transfer, task.box);
    return boxes;
  }
  const SourceTensor& scales = catalog.tensors[static_cast<std::size_t>(transfer.scales)];
  if (is_in_columns(layout, stored)) {
    boxes.scales = scales_in_columns(task, transfer, scales);
    return boxes;
  }
  const PartBoxes of_part = boxes_of(WeightPart{*layout.quantize, transfer.encoding, stored,
                                                parts.specs[transfer.destination].fqn, task.box});
  boxes.elements.shape = stored.shape;
  boxes.elements.box = of_part.codes;
  boxes.scales =
      EncodedBox{static_cast<std::uint32_t>(transfer.scales), scales.shape, of_part.scales, nullptr, -1};
  return boxes;
}

EncodingFigures encode_tasks(const PartsToWrite& parts, const ExportLayout& layout, const ExportTasks& work,
                             std::span<const ExportTask> tasks, const TemplateCodes* templates,
                             const DevicesInUse& devices, const EncodingResources& resources,
                             Progress* progress, const ReceiveBox& receive) {
  return Encoder(parts, layout, work, tasks, templates, receive).run(devices, resources, progress);
}

}  // namespace shardwright
