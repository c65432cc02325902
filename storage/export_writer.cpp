#include "storage/export_writer.h"

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <thread>
#include <utility>

#include "kernels/encode.h"
#include "planner/error.h"
#include "storage/box_reading.h"
#include "storage/output_files.h"
#include "storage/placing.h"
#include "storage/threads.h"

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

/// The native elements of an HF box: address of the first, and the stride of each HF dimension.
struct Values {
  const std::byte* data;
  Shape strides;
};

Values values_of(const std::vector<int>& axes, const Shape& local_offset, const TensorSpec& spec) {
  Values values{static_cast<const std::byte*>(spec.data), {}};
  std::int64_t offset = 0;
  for (std::size_t d = 0; d < local_offset.size(); ++d) offset += local_offset[d] * spec.local_strides[d];
  for (int axis : axes) values.strides.push_back(spec.local_strides[static_cast<std::size_t>(axis)]);
  values.data += offset * bytes_of(spec.dtype);
  return values;
}

Values values_of(const Transfer& transfer, const Box& part, const TensorSpec& spec) {
  Values values = values_of(transfer.axes, transfer.destination_offset, spec);
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < part.offset.size(); ++i)
    offset += (part.offset[i] - transfer.source_box.offset[i]) * values.strides[i];
  values.data += offset * bytes_of(spec.dtype);
  return values;
}

ValueTile tile_of(const Values& values, DType dtype, const Box& box) {
  return {values.data, dtype, box.size[0], box.size[1], values.strides[0], values.strides[1]};
}

/// A transfer, and the scales of the blocks that it cuts, one for each of its rows.
struct Job {
  const Transfer* transfer = nullptr;
  std::vector<std::uint8_t> first;  ///< of the blocks that its first columns are in; empty if they are whole
  std::vector<std::uint8_t> last;
};

/// A part of a transfer that fits into a staging buffer; cuts no block that the transfer does not cut.
struct Task {
  std::size_t job = 0;
  Box box;  ///< of the HF tensor
};

std::uint64_t unsigned_of(std::int64_t value) { return static_cast<std::uint64_t>(value); }

std::uint64_t staged_bytes(const Transfer& transfer, const Box& box, DType stored) {
  const std::uint64_t elements = unsigned_of(volume(box.size) * bytes_of(stored));
  return transfer.encoding.scaled ? elements + unsigned_of(volume(scale_box_of(transfer.encoding, box).size))
                                  : elements;
}

void cut(std::size_t job, const Transfer& transfer, DType stored, const Box& box, std::uint64_t buffer,
         std::vector<Task>& tasks) {
  if (is_empty(box)) return;
  const std::uint64_t bytes = staged_bytes(transfer, box, stored);
  std::size_t d = 0;
  while (d + 1 < box.size.size() && box.size[d] == 1) ++d;
  if (bytes <= buffer || box.size.empty() || box.size[d] == 1) {
    tasks.push_back({job, box});
    return;
  }
  const std::uint64_t per_index = (bytes + unsigned_of(box.size[d]) - 1) / unsigned_of(box.size[d]);
  std::int64_t strip = static_cast<std::int64_t>(std::max<std::uint64_t>(1, buffer / per_index));
  const bool in_blocks = transfer.encoding.scaled && d == 1;
  const std::int64_t grid = in_blocks ? transfer.encoding.block_columns : 1;
  strip = std::max(grid, strip - strip % grid);
  const std::int64_t end = box.offset[d] + box.size[d];
  for (std::int64_t begin = box.offset[d]; begin < end;) {
    Box part = box;
    part.offset[d] = begin;
    part.size[d] = std::min(strip - begin % grid, end - begin);
    begin += part.size[d];
    cut(job, transfer, stored, part, buffer, tasks);
  }
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

/// The threads of one export and what they parts.
class Writer {
 public:
  Writer(const PartsToWrite& parts, const ExportLayout& layout, const LoadPlan& plan,
         const std::filesystem::path& directory, std::size_t buffer_bytes)
      : parts_(parts),
        layout_(layout),
        catalog_(layout.catalog),
        files_(directory, names_of(layout.catalog)) {
    const SharedColumns shared(parts.shared_scales);
    for (const Transfer& transfer : plan.transfers) {
      if (is_empty(transfer.source_box)) continue;
      const SourceTensor& stored = catalog_.tensors[transfer.source];
      jobs_.push_back({&transfer, {}, {}});
      if (transfer.encoding.scaled) find_shared(stored, shared, jobs_.back());
      cut(jobs_.size() - 1, transfer, stored.dtype, transfer.source_box, buffer_bytes, tasks_);
    }
  }

  void run(int threads, ExportReport& report) {
    threads = std::max(1, std::min(threads, static_cast<int>(tasks_.size())));
    const std::size_t headers = parts_.headers.size();
    for (std::size_t h = 0; h < headers; ++h) write_header(parts_.headers[h]);
    std::vector<Buffer> buffers(static_cast<std::size_t>(threads));
    std::atomic<std::size_t> next = 0;
    for_each_index(buffers.size(), threads, [&](std::size_t thread) {
      for (std::size_t task = next++; task < tasks_.size() && !failed_; task = next++) {
        try {
          run_task(tasks_[task], buffers[thread]);
        } catch (...) {
          failed_ = true;
          throw;
        }
      }
    });
    const Clock::time_point written = Clock::now();
    files_.finish();
    report.sync_seconds = seconds_since(written);
    for (const Buffer& buffer : buffers) {
      report.peak_staging_bytes += buffer.size;
      report.encode_seconds += buffer.encoding / threads;
      report.write_seconds += buffer.writing / threads;
    }
    report.threads = threads;
    report.files = files_.count();
    report.bytes_written = files_.bytes();
    report.write_requests = files_.requests();
  }

 private:
  /// A thread's staging, and what it has done. Grows to the largest task.
  struct Buffer {
    std::unique_ptr<std::byte[]> data;
    std::size_t size = 0;
    double encoding = 0;
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

  static void find_shared(const SourceTensor& stored, const SharedColumns& shared, Job& job) {
    const Box& box = job.transfer->source_box;
    const std::int64_t block = job.transfer->encoding.block_columns;
    const std::int64_t end = box.offset[1] + box.size[1];
    if (box.offset[1] % block != 0)
      job.first = shared.of(stored.name, box.offset[1] / block, box.offset[0], box.size[0]);
    if (end % block != 0 && end != stored.shape[1])
      job.last = shared.of(stored.name, (end - 1) / block, box.offset[0], box.size[0]);
  }

  void write_header(std::size_t file) {
    const std::string& header = layout_.headers[file];
    files_.write(file, 0, reinterpret_cast<const std::byte*>(header.data()), header.size(), "the header");
  }

  void run_task(const Task& task, Buffer& buffer) {
    const Job& job = jobs_[task.job];
    const Transfer& transfer = *job.transfer;
    const SourceTensor& stored = catalog_.tensors[transfer.source];
    const TensorSpec& spec = parts_.specs[transfer.destination];
    if (transfer.encoding.scaled) return encode_and_write(task, job, stored, spec, buffer);

    const Clock::time_point begin = Clock::now();
    const Values values = values_of(transfer, task.box, spec);
    const Shape staged = contiguous_strides(task.box.size);
    std::vector<CopiedDimension> dimensions;
    for (std::size_t i = 0; i < staged.size(); ++i)
      dimensions.push_back({task.box.size[i], values.strides[i], staged[i]});
    const std::vector<CopiedDimension> simple = simplified(dimensions);
    const bool as_it_is = stored.dtype == spec.dtype &&
                          (simple.empty() || (simple.size() == 1 && simple[0].source_stride == 1));
    const std::byte* bytes = values.data;
    if (!as_it_is) {
      std::byte* room = buffer.room_for(unsigned_of(volume(task.box.size) * bytes_of(stored.dtype)));
      copy_box(dimensions, spec.dtype, stored.dtype, values.data, room);
      bytes = room;
    }
    buffer.encoding += seconds_since(begin);
    write_box(stored, task.box, bytes, -1, buffer);
  }

  void encode_and_write(const Task& task, const Job& job, const SourceTensor& stored, const TensorSpec& spec,
                        Buffer& buffer) {
    const Clock::time_point begin = Clock::now();
    const Transfer& transfer = *job.transfer;
    const std::int64_t block = transfer.encoding.block_columns;
    const Box& box = task.box;
    const Box& all = transfer.source_box;
    const std::int64_t row = box.offset[0] - all.offset[0];
    const bool is_left = box.offset[1] == all.offset[1];
    const bool is_right = box.offset[1] + box.size[1] == all.offset[1] + all.size[1];
    const SharedScales shared{is_left && !job.first.empty() ? job.first.data() + row : nullptr,
                              is_right && !job.last.empty() ? job.last.data() + row : nullptr};
    Box scale_box = scale_box_of(transfer.encoding, box);
    const std::int64_t blocks = scale_box.size[1];
    const std::int64_t elements = volume(box.size);
    std::byte* room = buffer.room_for(unsigned_of(elements + volume(scale_box.size)));
    auto* scales = reinterpret_cast<std::uint8_t*>(room + elements);
    encode(tile_of(values_of(transfer, box, spec), spec.dtype, box), box.offset[1] % block, shared,
           {reinterpret_cast<std::uint8_t*>(room), box.size[1], scales, blocks});
    buffer.encoding += seconds_since(begin);

    write_box(stored, box, room, -1, buffer);
    // The scale of a block that begins to the left is written by whoever has its beginning.
    const bool begins_left = box.offset[1] % block != 0;
    if (begins_left) {
      ++scale_box.offset[1];
      --scale_box.size[1];
      ++scales;
    }
    if (is_empty(scale_box)) return;
    write_box(catalog_.tensors[static_cast<std::size_t>(transfer.scales)], scale_box,
              reinterpret_cast<const std::byte*>(scales), begins_left ? blocks : -1, buffer);
  }

  /// Writes a box of a stored tensor. In memory its rows follow each other, or lie `row_bytes` apart.
  void write_box(const SourceTensor& stored, const Box& box, const std::byte* bytes, std::int64_t row_bytes,
                 Buffer& buffer) {
    const Clock::time_point begin = Clock::now();
    const BoxReading place =
        reading_of(stored.begin, stored.shape, static_cast<std::uint64_t>(bytes_of(stored.dtype)), box);
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
    buffer.writing += seconds_since(begin);
  }

  const PartsToWrite& parts_;
  const ExportLayout& layout_;
  const Catalog& catalog_;
  OutputFiles files_;
  std::vector<Job> jobs_;
  std::vector<Task> tasks_;
  std::atomic<bool> failed_{false};
};

}  // namespace

std::vector<BlockColumn> scales_of_cut_blocks(const std::vector<TensorSpec>& specs, const ExportForm& form) {
  std::vector<BlockColumn> columns;
  for (CutBlocks& cut : cut_blocks(specs, form)) {
    const TensorSpec& spec = specs[cut.spec];
    cut.column.scales.resize(static_cast<std::size_t>(cut.part.size[0]));
    find_scales(tile_of(values_of(cut.axes, cut.local_offset, spec), spec.dtype, cut.part),
                cut.part.offset[1] % mxfp8_block_columns, cut.column.scales.data(), 1);
    columns.push_back(std::move(cut.column));
  }
  return columns;
}

void write_parts(const PartsToWrite& parts, const ExportLayout& layout, const LoadPlan& plan,
                 const std::filesystem::path& directory, const ExportWriting& options, ExportReport& report) {
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
  Writer(parts, layout, plan, directory, buffer_bytes).run(threads, report);
}

}  // namespace shardwright
