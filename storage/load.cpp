#include "storage/load.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "kernels/decode.h"
#include "planner/error.h"
#include "storage/box_reading.h"

namespace shardwright {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

/// Staging that a thread gets if the caller does not say: small enough to stay in the cache of a core, large
/// enough for a system call to cost nothing beside it.
constexpr std::size_t default_buffer_bytes = std::size_t{1} << 20;
constexpr std::size_t smallest_buffer_bytes = 4096;

int processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0)
    return static_cast<int>(std::thread::hardware_concurrency());
  return CPU_COUNT(&set);
}

/// Files of a checkpoint, opened for reading when first needed and closed at the end. Safe to share between
/// threads.
class OpenFiles {
 public:
  explicit OpenFiles(const Catalog& catalog) : catalog_(catalog), descriptors_(catalog.files.size(), -1) {}
  OpenFiles(const OpenFiles&) = delete;
  OpenFiles& operator=(const OpenFiles&) = delete;
  ~OpenFiles() {
    for (int descriptor : descriptors_) {
      if (descriptor >= 0) close(descriptor);
    }
  }

  int descriptor(std::uint32_t file) {
    const std::lock_guard lock(mutex_);
    int& descriptor = descriptors_[file];
    if (descriptor < 0) {
      const std::string path = (catalog_.directory / catalog_.files[file].name).string();
      // O_NONBLOCK: opening a named pipe that has taken the file's place would otherwise wait for ever.
      descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
      if (descriptor < 0) {
        const int error = errno;
        throw Error(ErrorKind::io, path + ": cannot be opened: " + std::strerror(error), error);
      }
    }
    return descriptor;
  }

  std::int64_t count() const {
    return std::count_if(descriptors_.begin(), descriptors_.end(), [](int d) { return d >= 0; });
  }

 private:
  const Catalog& catalog_;
  std::mutex mutex_;
  std::vector<int> descriptors_;
};

/// Reads exactly `length` bytes.
void read_exactly(int descriptor, std::byte* to, std::uint64_t length, std::uint64_t offset,
                  const Catalog& catalog, const SourceTensor& tensor) {
  while (length > 0) {
    const ssize_t got = pread(descriptor, to, length, static_cast<off_t>(offset));
    if (got > 0) {
      to += got;
      offset += static_cast<std::uint64_t>(got);
      length -= static_cast<std::uint64_t>(got);
      continue;
    }
    if (got < 0 && errno == EINTR) continue;
    const int error = got < 0 ? errno : EIO;
    const std::string what =
        got < 0 ? "cannot be read: " + std::string(std::strerror(error))
                : "ends there, although it had " + std::to_string(catalog.files[tensor.file].size) +
                      " bytes when the load was planned; it has been cut short or replaced";
    throw Error(ErrorKind::io,
                catalog.path_of(tensor).string() + ": at offset " + std::to_string(offset) +
                    ", reading tensor " + tensor.name + " (bytes " + std::to_string(tensor.begin) + " to " +
                    std::to_string(tensor.end) + "), the file " + what +
                    ". The destinations are partly written",
                error);
  }
}

/// Reads a box into staging.
void read_box(const BoxReading& reading, int descriptor, std::byte* staging, const Catalog& catalog,
              const SourceTensor& tensor) {
  if (reading.in_one_request) {
    read_exactly(descriptor, staging, reading.staged_bytes, reading.begin, catalog, tensor);
    return;
  }
  std::vector<std::uint64_t> index(reading.run_counts.size(), 0);
  std::uint64_t offset = reading.begin;
  for (std::uint64_t run = 0; run < reading.requests; ++run) {
    read_exactly(descriptor, staging, reading.run_bytes, offset, catalog, tensor);
    staging += reading.run_bytes;
    for (std::size_t d = index.size(); d-- > 0;) {
      offset += reading.run_strides[d];
      if (++index[d] < reading.run_counts[d]) break;
      offset -= reading.run_counts[d] * reading.run_strides[d];
      index[d] = 0;
    }
  }
}

/// A staging buffer. It grows to the largest task that its thread meets, so that small loads take little memory, and never
/// holds an old and a new block at once.
struct Staging {
  std::unique_ptr<std::byte[]> data;
  std::size_t size = 0;

  std::byte* room_for(std::size_t bytes) {
    if (size < bytes) {
      data.reset();
      data = std::make_unique_for_overwrite<std::byte[]>(bytes);
      size = bytes;
    }
    return data.get();
  }
};

/// One dimension of a box that is copied: how many indices, and elements between them on either side.
struct Dimension {
  std::int64_t size;
  std::int64_t source_stride;
  std::int64_t destination_stride;
};

/// Leaves out dimensions of one index and joins neighbours that run on without a gap on both sides.
std::vector<Dimension> simplified(const std::vector<Dimension>& dimensions) {
  std::vector<Dimension> simple;
  for (const Dimension& inner : dimensions) {
    if (inner.size == 1) continue;
    if (!simple.empty() && simple.back().source_stride == inner.size * inner.source_stride &&
        simple.back().destination_stride == inner.size * inner.destination_stride) {
      simple.back() = {simple.back().size * inner.size, inner.source_stride, inner.destination_stride};
    } else {
      simple.push_back(inner);
    }
  }
  return simple;
}

/// Where a task's box goes: the address of its first element, and the stride of each of its dimensions.
struct Target {
  std::byte* data;
  Shape strides;
};

Target target_of(const ReadTask& task, const Transfer& transfer, const TensorSpec& spec) {
  Target target{static_cast<std::byte*>(spec.data), {}};
  std::int64_t offset = 0;
  for (std::size_t d = 0; d < transfer.destination_offset.size(); ++d) {
    offset += transfer.destination_offset[d] * spec.local_strides[d];
  }
  for (std::size_t i = 0; i < transfer.axes.size(); ++i) {
    target.strides.push_back(spec.local_strides[static_cast<std::size_t>(transfer.axes[i])]);
    offset += (task.box.offset[i] - transfer.source_box.offset[i]) * target.strides[i];
  }
  target.data += offset * bytes_of(spec.dtype);
  return target;
}

std::vector<Dimension> dimensions_of(const ReadTask& task, const Target& target) {
  std::vector<Dimension> dimensions;
  for (std::size_t i = 0; i < task.box.size.size(); ++i) {
    dimensions.push_back({task.box.size[i], task.weights.staged_strides[i], target.strides[i]});
  }
  return simplified(dimensions);
}

void decode_scaled(const ReadTask& task, const Transfer& transfer, const std::byte* staging,
                   const Target& target, DType destination) {
  const SourceTile source{staging, transfer.encoding.element, task.box.size[0], task.box.size[1],
                          task.weights.staged_strides[0]};
  const std::int64_t row = transfer.first_row_in_block + task.box.offset[0] - transfer.source_box.offset[0];
  const std::int64_t column =
      transfer.first_column_in_block + task.box.offset[1] - transfer.source_box.offset[1];
  const BlockScales scales{reinterpret_cast<const std::uint8_t*>(staging + scales_offset_in_staging(task)),
                           task.scales.staged_strides[0],
                           transfer.encoding.block_rows,
                           transfer.encoding.block_columns,
                           row % transfer.encoding.block_rows,
                           column % transfer.encoding.block_columns};
  decode(source, scales, {target.data, destination, target.strides[0], target.strides[1]});
}

/// Places a plain box of any rank: the two innermost dimensions as one tile, for each index of the outer
/// ones.
void place_plain(const std::vector<Dimension>& dimensions, DType source, DType destination,
                 const std::byte* from, std::byte* to) {
  const std::size_t rank = dimensions.size();
  if (rank > 2) {
    const std::vector<Dimension> inner(dimensions.begin() + 1, dimensions.end());
    for (std::int64_t i = 0; i < dimensions[0].size; ++i) {
      place_plain(inner, source, destination, from + i * dimensions[0].source_stride * bytes_of(source),
                  to + i * dimensions[0].destination_stride * bytes_of(destination));
    }
    return;
  }
  const Dimension one{1, 0, 0};
  const Dimension columns = rank >= 1 ? dimensions[rank - 1] : one;
  const Dimension rows = rank >= 2 ? dimensions[rank - 2] : one;
  // A tile's columns are contiguous in the source; a box with single columns further apart is one of many
  // rows.
  const bool contiguous = columns.size == 1 || columns.source_stride == 1;
  if (contiguous) {
    place({from, source, rows.size, columns.size, rows.source_stride},
          {to, destination, rows.destination_stride, columns.destination_stride});
    return;
  }
  for (std::int64_t r = 0; r < rows.size; ++r) {
    place({from + r * rows.source_stride * bytes_of(source), source, columns.size, 1, columns.source_stride},
          {to + r * rows.destination_stride * bytes_of(destination), destination, columns.destination_stride,
           1});
  }
}

/// The threads of one load and what they share.
class Engine {
 public:
  Engine(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
         std::size_t buffer_bytes)
      : plan_(plan),
        catalog_(catalog),
        specs_(specs),
        files_(catalog),
        tasks_(cut_into_tasks(plan, catalog, buffer_bytes)) {}

  void run(int threads, const std::function<void(std::uint64_t, std::uint64_t)>& progress,
           LoadReport& report) {
    threads = std::max(1, std::min(threads, static_cast<int>(tasks_.size())));
    std::vector<std::thread> workers;
    running_ = threads;
    try {
      for (int t = 0; t < threads; ++t) workers.emplace_back([this] { work(); });
      wait(progress);
    } catch (...) {
      stop(std::current_exception());
    }
    for (std::thread& worker : workers) worker.join();
    if (failure_) std::rethrow_exception(failure_);
    report.threads = threads;
    report.files = files_.count();
    report.bytes_read = bytes_read_;
    report.read_requests = requests_;
    report.peak_staging_bytes = staging_bytes_;
    report.read_seconds = read_seconds_ / threads;
    report.decode_seconds = decode_seconds_ / threads;
  }

 private:
  void work() {
    try {
      Staging staging;
      std::uint64_t requests = 0;
      double reading = 0;
      double decoding = 0;
      while (!stopped_) {
        const std::size_t next = next_task_.fetch_add(1);
        if (next >= tasks_.size()) break;
        run_task(tasks_[next], staging, requests, reading, decoding);
      }
      const std::lock_guard lock(mutex_);
      requests_ += requests;
      staging_bytes_ += staging.size;
      read_seconds_ += reading;
      decode_seconds_ += decoding;
    } catch (...) {
      stop(std::current_exception());
    }
    const std::lock_guard lock(mutex_);
    --running_;
    changed_.notify_all();
  }

  void run_task(const ReadTask& task, Staging& staging, std::uint64_t& requests,
                double& reading, double& decoding) {
    const Transfer& transfer = plan_.transfers[task.transfer];
    const SourceTensor& source = catalog_.tensors[transfer.source];
    const TensorSpec& spec = specs_[transfer.destination];
    const Target target = target_of(task, transfer, spec);
    const int descriptor = files_.descriptor(source.file);
    const Clock::time_point begin = Clock::now();

    if (transfer.scales < 0) {
      const std::vector<Dimension> dimensions = dimensions_of(task, target);
      const bool as_it_is =
          source.dtype == spec.dtype && task.weights.in_one_request &&
          (dimensions.empty() || (dimensions.size() == 1 && dimensions[0].source_stride == 1 &&
                                  dimensions[0].destination_stride == 1));
      // What needs neither conversion nor regrouping is read to its place without staging.
      std::byte* to = as_it_is ? target.data : room_for(task, staging);
      read_box(task.weights, descriptor, to, catalog_, source);
      const Clock::time_point read = Clock::now();
      reading += seconds_between(begin, read);
      if (!as_it_is) place_plain(dimensions, source.dtype, spec.dtype, to, target.data);
      decoding += seconds_between(read, Clock::now());
    } else {
      const SourceTensor& scales = catalog_.tensors[static_cast<std::size_t>(transfer.scales)];
      std::byte* buffer = room_for(task, staging);
      read_box(task.weights, descriptor, buffer, catalog_, source);
      read_box(task.scales, files_.descriptor(scales.file), buffer + scales_offset_in_staging(task), catalog_,
               scales);
      const Clock::time_point read = Clock::now();
      reading += seconds_between(begin, read);
      decode_scaled(task, transfer, buffer, target, spec.dtype);
      decoding += seconds_between(read, Clock::now());
    }
    requests += task.weights.requests + task.scales.requests;
    bytes_read_ += task.weights.staged_bytes + task.scales.staged_bytes;
  }

  static std::byte* room_for(const ReadTask& task, Staging& staging) {
    return staging.room_for(scales_offset_in_staging(task) + task.scales.staged_bytes);
  }

  /// Reports progress until the threads are done. Whatever `progress` throws stops them.
  void wait(const std::function<void(std::uint64_t, std::uint64_t)>& progress) {
    std::uint64_t total = 0;
    for (const ReadTask& task : tasks_) total += task.weights.staged_bytes + task.scales.staged_bytes;
    std::unique_lock lock(mutex_);
    for (;;) {
      const bool done = running_ == 0;
      if (progress) {
        lock.unlock();
        progress(bytes_read_, total);
        lock.lock();
      }
      if (done) return;
      if (running_ > 0) changed_.wait_for(lock, std::chrono::milliseconds(100));
    }
  }

  void stop(const std::exception_ptr& failure) {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = failure;
    stopped_ = true;
  }

  const LoadPlan& plan_;
  const Catalog& catalog_;
  const std::vector<TensorSpec>& specs_;
  OpenFiles files_;
  const std::vector<ReadTask> tasks_;
  std::atomic<std::size_t> next_task_{0};
  std::atomic<std::uint64_t> bytes_read_{0};
  std::atomic<bool> stopped_{false};

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  int running_ = 0;
  std::exception_ptr failure_;
  std::uint64_t requests_ = 0;
  std::size_t staging_bytes_ = 0;
  double read_seconds_ = 0;
  double decode_seconds_ = 0;
};

}  // namespace

LoadReport load(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
                const LoadOptions& options) {
  const Clock::time_point begin = Clock::now();
  for (const Transfer& transfer : plan.transfers) {
    if (const TensorSpec& spec = specs.at(transfer.destination); spec.data == nullptr) {
      throw Error(ErrorKind::argument, spec.fqn + ": has no memory to load into; it was described for a plan only");
    }
  }
  int threads = options.threads > 0 ? options.threads : std::max(1, processors());
  std::size_t buffer_bytes = default_buffer_bytes;
  if (options.staging_bytes > 0) {
    if (options.staging_bytes < smallest_buffer_bytes) {
      throw Error(ErrorKind::argument, "staging_bytes is " + std::to_string(options.staging_bytes) +
                                           "; expected at least " + std::to_string(smallest_buffer_bytes));
    }
    threads = std::min(threads, static_cast<int>(std::min<std::size_t>(
                                    options.staging_bytes / smallest_buffer_bytes, 1024)));
    buffer_bytes = std::min(buffer_bytes * 4, options.staging_bytes / static_cast<std::size_t>(threads));
  }
  LoadReport report;
  report.tensors = plan.tensors;
  report.bytes_needed = plan.bytes_needed;
  report.bytes_written = plan.bytes_written;
  report.unused = plan.unused;
  report.instruction_set = instruction_set();
  Engine(plan, catalog, specs, buffer_bytes).run(threads, options.progress, report);
  report.total_seconds = seconds_between(begin, Clock::now());
  return report;
}

}  // namespace shardwright
