#include "storage/load.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "kernels/decode.h"
#include "planner/error.h"
#include "storage/box_reading.h"
#include "storage/input_file.h"
#include "storage/placing.h"
#include "storage/threads.h"

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
constexpr int most_threads = 1024;

/// Files of a checkpoint, opened when first needed and closed at the end. Safe to share between threads.
class OpenFiles {
 public:
  explicit OpenFiles(const Catalog& catalog) : catalog_(catalog), files_(catalog.files.size()) {}

  /// Reads `length` bytes at `offset` of the file that holds `tensor`.
  void read(const SourceTensor& tensor, std::uint64_t offset, std::byte* to, std::uint64_t length) {
    try {
      file(tensor).read(offset, reinterpret_cast<char*>(to), length);
    } catch (const Error& error) {
      throw Error(ErrorKind::io,
                  std::string(error.what()) + "; reading from byte " + std::to_string(offset) +
                      " for tensor " + tensor.name + ", bytes " + std::to_string(tensor.begin) + " to " +
                      std::to_string(tensor.end) + ". The destinations are partly written",
                  error.system_error);
    }
  }

  std::int64_t count() const {
    return std::count_if(files_.begin(), files_.end(), [](const auto& file) { return file != nullptr; });
  }

 private:
  const InputFile& file(const SourceTensor& tensor) {
    const std::lock_guard lock(mutex_);
    std::unique_ptr<const InputFile>& file = files_[tensor.file];
    if (!file) {
      auto opened = std::make_unique<const InputFile>(catalog_.path_of(tensor));
      const std::uint64_t expected = catalog_.files[tensor.file].size;
      if (opened->size() != expected) {
        throw Error(ErrorKind::io,
                    opened->path().string() + ": the file ends at offset " + std::to_string(opened->size()) +
                        ", expected " + std::to_string(expected) +
                        " bytes as when the load was planned: it has been cut short or replaced",
                    EIO);
      }
      file = std::move(opened);
    }
    return *file;
  }

  const Catalog& catalog_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<const InputFile>> files_;  // by index into Catalog::files
};

/// Reads a box into staging.
void read_box(const BoxReading& reading, const SourceTensor& tensor, std::byte* staging, OpenFiles& files) {
  if (reading.in_one_request) {
    files.read(tensor, reading.begin, staging, reading.staged_bytes);
    return;
  }
  std::vector<std::uint64_t> index(reading.run_counts.size(), 0);
  std::uint64_t offset = reading.begin;
  for (std::uint64_t run = 0; run < reading.requests; ++run) {
    files.read(tensor, offset, staging, reading.run_bytes);
    staging += reading.run_bytes;
    for (std::size_t d = index.size(); d-- > 0;) {
      offset += reading.run_strides[d];
      if (++index[d] < reading.run_counts[d]) break;
      offset -= reading.run_counts[d] * reading.run_strides[d];
      index[d] = 0;
    }
  }
}

/// A staging buffer. It grows to the largest task that its thread meets, so that small loads take little
/// memory, and never holds an old and a new block at once.
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

  void run_task(const ReadTask& task, Staging& staging, std::uint64_t& requests, double& reading,
                double& decoding) {
    const Transfer& transfer = plan_.transfers[task.transfer];
    const SourceTensor& source = catalog_.tensors[transfer.source];
    const TensorSpec& spec = specs_[transfer.destination];
    const Clock::time_point begin = Clock::now();

    // What needs neither conversion nor regrouping is read to its place without staging.
    if (std::byte* place = task.weights.in_one_request ? place_as_it_is(transfer, source.dtype, task.box,
                                                                        task.weights.staged_strides, spec)
                                                       : nullptr) {
      read_box(task.weights, source, place, files_);
      reading += seconds_between(begin, Clock::now());
    } else {
      std::byte* buffer = room_for(task, staging);
      read_box(task.weights, source, buffer, files_);
      BoxInMemory part{task.box, buffer, task.weights.staged_strides, nullptr, {}};
      if (transfer.scales >= 0) {
        const SourceTensor& scales = catalog_.tensors[static_cast<std::size_t>(transfer.scales)];
        std::byte* staged_scales = buffer + scales_offset_in_staging(task);
        read_box(task.scales, scales, staged_scales, files_);
        part.scales = staged_scales;
        part.scale_strides = task.scales.staged_strides;
      }
      const Clock::time_point read = Clock::now();
      reading += seconds_between(begin, read);
      place_box(transfer, source.dtype, part, spec);
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
  expect_memory(plan, specs);
  int threads = std::min(most_threads, options.threads > 0 ? options.threads : processors());
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
  report.catalog_seconds = catalog.seconds;
  report.plan_seconds = plan.seconds;
  report.unused = plan.unused;
  report.unknown = plan.unknown;
  report.not_loaded = plan.not_loaded;
  report.instruction_set = instruction_set();
  Engine(plan, catalog, specs, buffer_bytes).run(threads, options.progress, report);
  report.total_seconds = seconds_between(begin, Clock::now());
  return report;
}

}  // namespace shardwright
