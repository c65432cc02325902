#include "storage/write/export_writer.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/encode.h"
#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "storage/boxes/box_reading.h"
#include "storage/boxes/placing.h"
#include "storage/device/device_gatherers.h"
#include "storage/files/output_files.h"
#include "storage/format/row_checksums.h"
#include "storage/format/safetensors.h"
#include "storage/threads.h"
#include "storage/write/encode_part.h"
#include "storage/write/export_tasks.h"
#include "storage/write/find_numbers.h"
#include "storage/write/template_codes.h"

namespace shardwright {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// Staging that a thread gets if the caller does not say: one request writes that much.
constexpr std::size_t default_buffer_bytes = std::size_t{4} << 20;
constexpr std::size_t smallest_buffer_bytes = std::size_t{64} << 10;
constexpr int most_threads = 1024;

/// Pinned memory for all threads if the caller does not say.
constexpr std::size_t default_pinned_bytes = std::size_t{128} << 20;

std::uint64_t unsigned_of(std::int64_t value) { return static_cast<std::uint64_t>(value); }

/// The dimensions of a plain box, from where its values are to where they follow each other.
std::vector<CopiedDimension> dimensions_of(const Values& values, const Box& box) {
  const Shape staged = contiguous_strides(box.size);
  std::vector<CopiedDimension> dimensions;
  for (std::size_t i = 0; i < staged.size(); ++i)
    dimensions.push_back({box.size[i], values.strides[i], staged[i]});
  return dimensions;
}

/// Whether the values lie in memory as they are to be in the file.
bool is_stored_alike(const std::vector<CopiedDimension>& dimensions, DType native, DType stored) {
  if (stored != native) return false;
  const std::vector<CopiedDimension> simple = joined_dimensions(dimensions);
  return simple.empty() || (simple.size() == 1 && simple[0].source_stride == 1);
}

/// Threads, and what each of them takes: for tensors in CPU memory, and for those on devices. `bytes` is what
/// they have to write.
struct WritingResources {
  std::size_t buffer_bytes = 0;
  GatherBounds gathering;
};

WritingResources resources_for(const ExportWriting& options, const std::vector<TensorSpec>& specs,
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

/// Whether the scales of a weight's cut blocks are told by columns, and its values are encoded where they
/// are: a matrix in MXFP8.
bool is_in_columns(const ExportLayout& layout, const SourceTensor& weight) {
  return layout.quantise != nullptr && layout.quantise->rule == EncodingRule::mxfp8 &&
         weight.shape.size() == 2;
}

/// The threads of one export and what they share.
class Writer {
 public:
  Writer(const PartsToWrite& parts, const ExportLayout& layout, const LoadPlan& plan,
         const std::filesystem::path& directory, const DevicesInUse& devices,
         const WritingResources& resources, Progress* progress)
      : parts_(parts),
        layout_(layout),
        catalog_(layout.catalog),
        devices_(devices),
        resources_(resources),
        progress_(progress),
        files_(directory, names_of(layout.catalog)),
        row_sums_(layout.catalog.tensors),
        work_(export_tasks(
            parts, layout.catalog, plan,
            [&](const SourceTensor& weight) { return is_in_columns(layout, weight); },
            [&](const TensorSpec& spec) {
              if (spec.device != DeviceKind::cuda) return TaskBounds{resources.buffer_bytes, 0};
              const std::size_t room = resources.gathering.block_bytes - DeviceGatherer::slack;
              // Values that are encoded here come in their own dtype: up to 8 times as many
              // bytes as their codes.
              const bool is_encoded_here = layout.template_catalog != nullptr || layout.quantise != nullptr;
              return TaskBounds{is_encoded_here ? room / 8 : room, 2};
            })) {
    if (layout.template_catalog != nullptr) template_.emplace(*layout.template_catalog);
  }

  void run(ExportReport& report) {
    for (const std::uint32_t file : parts_.headers) write_header(file);
    for (const ExportTask& task : work_.tasks) expect_in_all(progress_, bytes_of_task(task));
    std::vector<Thread> threads(static_cast<std::size_t>(resources_.gathering.threads));
    const GatherFigures done =
        gather_on_threads(work_.tasks.size(), devices_, resources_.gathering,
                          [&](std::size_t index, std::size_t thread, DeviceGatherers& gatherers) {
                            const ExportTask& task = work_.tasks[index];
                            const TensorSpec& spec = parts_.specs[transfer_of(task).destination];
                            if (spec.device == DeviceKind::cuda) {
                              gather(task, spec, gatherers.of(spec.device_index), threads[thread]);
                            } else {
                              encode(task, spec, threads[thread]);
                            }
                            count_done(progress_, bytes_of_task(task));
                          });
    const Clock::time_point written = Clock::now();
    files_.finish();
    report.sync_seconds = seconds_since(written);
    report.threads =
        std::max(1, std::min(resources_.gathering.threads, static_cast<int>(work_.tasks.size())));
    report.peak_staging_bytes = done.pinned_bytes;
    report.bytes_from_devices = done.bytes_copied;
    report.device_batches = done.batches;
    report.devices = static_cast<int>(devices_.count());
    report.peak_device_bytes = done.peak_device_bytes;
    for (const Thread& thread : threads) {
      report.peak_staging_bytes += thread.size;
      report.write_seconds += thread.writing / report.threads;
    }
    report.encode_seconds = done.seconds / report.threads - report.write_seconds;
    report.files = files_.count();
    report.bytes_written = files_.bytes();
    report.write_requests = files_.requests();
    report.row_sums = row_sums_.encode();
  }

 private:
  /// A thread's staging for what is in CPU memory, which grows to the largest task, and the time it has spent
  /// with writing.
  struct Thread {
    std::unique_ptr<std::byte[]> data;
    std::size_t size = 0;
    double writing = 0;

    std::byte* room_for(std::size_t bytes) {
      if (size < bytes) {
        data.reset();
        data = std::make_unique_for_overwrite<std::byte[]>(bytes);
        size = bytes;
      }
      return data.get();
    }
  };

  static std::vector<std::string> names_of(const Catalog& catalog) {
    std::vector<std::string> names;
    for (const SourceFile& file : catalog.files) names.push_back(file.name);
    return names;
  }

  void write_header(std::size_t file) {
    const std::string& header = layout_.headers[file];
    files_.write(file, 0, reinterpret_cast<const std::byte*>(header.data()), header.size(), "the header");
    if (layout_.has_holes) files_.reach(file, catalog_.files[file].size);
    for (const std::uint32_t tensor : layout_.copied) {
      if (catalog_.tensors[tensor].file != file) continue;
      const std::vector<std::byte> bytes = template_->bytes_of(catalog_.tensors[tensor].name);
      write_box(tensor, catalog_.tensors[tensor].shape, whole(catalog_.tensors[tensor].shape), bytes.data(),
                -1);
    }
    for (const Made& made : layout_.made) {
      if (catalog_.tensors[made.tensor].file == file) write_made(made);
    }
  }

  void write_made(const Made& made) {
    const SourceTensor& stored = catalog_.tensors[made.tensor];
    std::vector<std::byte> bytes(stored.end - stored.begin);
    if (made.how.kind == MadeTensor::Kind::shape) {
      const Shape& shape = catalog_.find(made.how.weight).front().shape;
      std::memcpy(bytes.data(), shape.data(), bytes.size());
    } else {
      float number = 1;
      if (made.how.kind == MadeTensor::Kind::global_scale)
        number = global_scale(layout_.quantise->rule, made.how.values,
                              parts_.numbers.largest(made.how.weight).value_or(0));
      copy_box({{volume(stored.shape), 0, 1}}, DType::F32, stored.dtype,
               reinterpret_cast<const std::byte*>(&number), bytes.data());
    }
    write_box(made.tensor, stored.shape, whole(stored.shape), bytes.data(), -1);
  }

  const Transfer& transfer_of(const ExportTask& task) const {
    return *work_.transfers[task.transfer].transfer;
  }

  /// Of its elements, as the file has them.
  std::uint64_t bytes_of_task(const ExportTask& task) const {
    return static_cast<std::uint64_t>(
        bytes_of_box(catalog_.tensors[transfer_of(task).source].dtype, task.box));
  }

  /// Encodes, converts or regroups values in CPU memory, and writes them.
  void encode(const ExportTask& task, const TensorSpec& spec, Thread& thread) {
    const Transfer& transfer = transfer_of(task);
    const Values values = values_of(transfer, task.box, spec);
    if (transfer.encoding.scaled && template_) return encode_as_template(task, values, spec.dtype, thread);
    if (transfer.encoding.scaled && !is_in_columns(layout_, catalog_.tensors[transfer.source]))
      return encode_by_rule(task, values, spec, thread);
    if (transfer.encoding.scaled) {
      const std::int64_t elements = volume(task.box.size);
      const Shape scales = scale_box_of(transfer.encoding, task.box).size;
      std::byte* room = thread.room_for(unsigned_of(elements + volume(scales)));
      auto* encoded = reinterpret_cast<std::uint8_t*>(room);
      shardwright::encode(tile_of(values, spec.dtype, task.box),
                          task.box.offset[1] % transfer.encoding.block_columns, work_.shared_scales(task),
                          {encoded, task.box.size[1], encoded + elements, scales[1]});
      return write(task, room, thread);
    }
    const DType stored = catalog_.tensors[transfer.source].dtype;
    const std::vector<CopiedDimension> dimensions = dimensions_of(values, task.box);
    if (is_stored_alike(dimensions, spec.dtype, stored)) return write(task, values.data, thread);
    std::byte* room = thread.room_for(unsigned_of(volume(task.box.size) * bytes_of(stored)));
    copy_box(dimensions, spec.dtype, stored, values.data, room);
    write(task, room, thread);
  }

  /// The same with the template's scales.
  void encode_as_template(const ExportTask& task, const Values& values, DType dtype, Thread& thread) {
    const Transfer& transfer = transfer_of(task);
    const SourceTensor& stored = catalog_.tensors[transfer.source];
    const std::vector<std::byte> codes = template_->encode(transfer, stored, task.box, values, dtype);
    const Box written = TemplateCodes::written_box(transfer, task.box);
    if (is_empty(written)) return;
    const Clock::time_point begin = Clock::now();
    write_box(transfer.source, seen_shape(transfer, stored), written, codes.data(), -1);
    thread.writing += seconds_since(begin);
  }

  /// The same by the layout's rule.
  void encode_by_rule(const ExportTask& task, const Values& values, const TensorSpec& spec, Thread& thread) {
    const Transfer& transfer = transfer_of(task);
    const SourceTensor& stored = catalog_.tensors[transfer.source];
    const WeightPart part{*layout_.quantise, transfer.encoding, stored, spec.fqn, task.box};
    const PartBoxes boxes = boxes_of(part);
    std::byte* codes = thread.room_for(boxes.code_bytes + boxes.scale_bytes);
    std::byte* scales = codes + boxes.code_bytes;
    encode_part(part, values, spec.dtype, parts_.numbers, codes, scales);
    const Clock::time_point begin = Clock::now();
    if (!is_empty(boxes.codes)) write_box(transfer.source, stored.shape, boxes.codes, codes, -1);
    if (!is_empty(boxes.scales)) {
      const auto tensor = static_cast<std::uint32_t>(transfer.scales);
      write_box(tensor, catalog_.tensors[tensor].shape, boxes.scales, scales, -1);
    }
    thread.writing += seconds_since(begin);
  }

  /// The same for values on a device: begins it, and writes what has come.
  void gather(const ExportTask& task, const TensorSpec& spec, DeviceGatherer& gatherer, Thread& thread) {
    const Transfer& transfer = transfer_of(task);
    const SourceTensor& stored = catalog_.tensors[transfer.source];
    const Values values = values_of(transfer, task.box, spec);
    const std::string name = spec.fqn + " (to " + stored.name + ")";
    if (transfer.encoding.scaled && (template_ || !is_in_columns(layout_, stored))) {
      // Values come as they are, and are encoded here.
      return gather_values(gatherer, values, spec.dtype, task.box, name,
                           [this, &task, &spec, &thread](const std::byte* bytes) {
                             const Values brought{bytes, contiguous_strides(task.box.size)};
                             if (template_) return encode_as_template(task, brought, spec.dtype, thread);
                             encode_by_rule(task, brought, spec, thread);
                           });
    }
    const auto receive = [this, &task, &thread](const std::byte* bytes) { write(task, bytes, thread); };
    if (transfer.encoding.scaled) {
      return gatherer.encode(tile_of(values, spec.dtype, task.box),
                             task.box.offset[1] % transfer.encoding.block_columns, work_.shared_scales(task),
                             name, receive);
    }
    const std::vector<CopiedDimension> dimensions = dimensions_of(values, task.box);
    const auto bytes = static_cast<std::size_t>(volume(task.box.size) * bytes_of(stored.dtype));
    gatherer.begin(bytes, name, receive);
    if (is_stored_alike(dimensions, spec.dtype, stored.dtype)) return gatherer.copy(values.data, bytes);
    for_each_tile(dimensions, spec.dtype, stored.dtype, values.data, gatherer.stretch(bytes),
                  [&](const cuda::Placing& placing) { gatherer.place(placing); });
  }

  /// Writes a task's elements, and the scales behind them if it has some.
  void write(const ExportTask& task, const std::byte* bytes, Thread& thread) {
    const Clock::time_point begin = Clock::now();
    const Transfer& transfer = transfer_of(task);
    write_box(transfer.source, seen_shape(transfer, catalog_.tensors[transfer.source]), task.box, bytes, -1);
    if (transfer.encoding.scaled) write_scales(task, bytes + volume(task.box.size));
    thread.writing += seconds_since(begin);
  }

  void write_scales(const ExportTask& task, const std::byte* scales) {
    const Transfer& transfer = transfer_of(task);
    Box box = scale_box_of(transfer.encoding, task.box);
    const std::int64_t blocks = box.size[1];
    // The scale of a block that begins to the left is written by whoever has its beginning.
    const bool begins_left = task.box.offset[1] % transfer.encoding.block_columns != 0;
    if (begins_left) {
      ++box.offset[1];
      --box.size[1];
      ++scales;
    }
    if (is_empty(box)) return;
    const auto tensor = static_cast<std::uint32_t>(transfer.scales);
    write_box(tensor, catalog_.tensors[tensor].shape, box, scales, begins_left ? blocks : -1);
  }

  /// Writes a box of a stored tensor that is seen in that shape. In memory its rows follow each other, or lie
  /// `row_bytes` apart.
  void write_box(std::uint32_t tensor, const Shape& shape, const Box& box, const std::byte* bytes,
                 std::int64_t row_bytes) {
    const SourceTensor& stored = catalog_.tensors[tensor];
    Shape strides = strides_in_elements(stored.dtype, contiguous_strides(in_units(stored.dtype, box).size));
    if (row_bytes >= 0) strides[strides.size() - 2] = row_bytes;  // of scales, which take a byte each
    if (layout_.has_checksums) row_sums_.add(tensor, shape, box, {bytes, strides});
    const BoxReading place = reading_of(stored, shape, box);
    std::uint64_t runs = 1;
    for (std::uint64_t count : place.run_counts) runs *= count;
    const std::uint64_t step = row_bytes < 0 ? place.run_bytes : unsigned_of(row_bytes);
    std::vector<std::uint64_t> index(place.run_counts.size(), 0);
    std::uint64_t offset = place.begin;
    for (std::uint64_t run = 0; run < runs; ++run, bytes += step) {
      files_.write(stored.file, offset, bytes, place.run_bytes, "tensor " + stored.name);
      for (std::size_t d = index.size(); d-- > 0;) {
        offset += place.run_strides[d];
        if (++index[d] < place.run_counts[d]) break;
        offset -= place.run_counts[d] * place.run_strides[d];
        index[d] = 0;
      }
    }
  }

  const PartsToWrite& parts_;
  const ExportLayout& layout_;
  const Catalog& catalog_;
  const DevicesInUse& devices_;
  const WritingResources resources_;
  Progress* progress_;
  std::optional<TemplateCodes> template_;
  OutputFiles files_;
  RowSums row_sums_;
  const ExportTasks work_;
};

}  // namespace

void write_parts(const PartsToWrite& parts, const ExportLayout& layout, const LoadPlan& plan,
                 const std::filesystem::path& directory, const ExportWriting& options, ExportReport& report) {
  DevicesInUse devices(tensors_on_devices(parts.specs), options.devices);
  Writer writer(parts, layout, plan, directory, devices,
                resources_for(options, parts.specs, devices, plan.bytes_needed), options.progress);
  devices.run([&] { writer.run(report); });
}

}  // namespace shardwright
