#include "storage/load.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "kernels/decode.h"
#include "planner/error.h"
#include "planner/problems.h"
#include "storage/box_reading.h"
#include "storage/copies_under_way.h"
#include "storage/load_devices.h"
#include "storage/open_files.h"
#include "storage/placing.h"
#include "storage/staging.h"
#include "storage/task_reader.h"
#include "storage/threads.h"
#include "storage/trace.h"
#include "storage/written_parts.h"

namespace shardwright {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

/// Staging for one read at a time if the caller does not say: small enough to stay in the cache of a core,
/// large enough for a system call to cost nothing beside it.
constexpr std::size_t default_buffer_bytes = std::size_t{1} << 20;
constexpr std::size_t largest_buffer_bytes = std::size_t{4} << 20;
constexpr std::size_t smallest_buffer_bytes = 4096;
constexpr std::size_t most_threads = 1024;

/// For files on a disk: it wants some sixteen reads of 4 MiB at a time, into huge pages, as a request is cut
/// up where memory is not contiguous. On two threads of an EPYC and a virtual disk, 2.3 GB take 0.73 s
/// so, 1.1 s in reads of 1 MiB into pages of 4 KiB, and 0.62 s with the best of dd's settings.
constexpr std::size_t reads_from_disk = 16;
constexpr std::size_t most_reads = 8;  // of one thread
constexpr std::size_t staging_for_disks = std::size_t{64} << 20;
constexpr std::size_t threads_that_wait = 4;  // for each processor, where a read makes its thread wait

/// Buffers of a thread that are being copied to a device while it fills others.
constexpr std::size_t copies_of_thread = 2;

/// What a load takes, settled before it begins.
struct Resources {
  int threads = 1;
  int buffers_per_thread = 1;
  std::size_t buffer_bytes = default_buffer_bytes;
  bool huge_pages = false;
};

/// Figures of one thread, or of all together.
struct Figures {
  ReadingFigures boxes;  // as the tasks count them
  std::uint64_t bytes_read = 0;
  std::uint64_t requests = 0;
  std::size_t staging_bytes = 0;
  Clock::duration reading{};  // or waiting for reads
  Clock::duration decoding{};
  bool had_ring = false;

  void add(const Figures& other) {
    boxes.boxes_with_gaps += other.boxes.boxes_with_gaps;
    boxes.boxes_in_pieces += other.boxes.boxes_in_pieces;
    bytes_read += other.bytes_read;
    requests += other.requests;
    staging_bytes += other.staging_bytes;
    reading += other.reading;
    decoding += other.decoding;
    had_ring = had_ring || other.had_ring;
  }
};

/// The threads of one load and what they share.
class Engine {
 public:
  Engine(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
         const LoadOptions& options)
      : plan_(plan),
        catalog_(catalog),
        specs_(specs),
        options_(options),
        files_(catalog, direct_io_of(options)),
        written_(plan, specs.size()),
        devices_(plan, catalog, specs, options, written_) {}

  void run(LoadReport& report) {
    try {
      run_plan(report);
      devices_.finish();
    } catch (const Error& error) {
      devices_.abandon();
      throw with_names(error);
    } catch (...) {
      devices_.abandon();
      throw;
    }
    devices_.report(report);
  }

 private:
  void run_plan(LoadReport& report) {
    open_files();
    const Resources resources = settle();
    const std::size_t task_bytes = TaskReader::task_bytes_of(resources.buffer_bytes);
    TaskCutter cutter(plan_, catalog_, task_bytes, costs_);
    cutter_ = &cutter;
    const std::uint64_t bytes_in_all = options_.progress ? bytes_to_read(task_bytes) : 0;
    devices_.open();

    const Clock::time_point begin = Clock::now();
    std::vector<std::thread> workers;
    running_ = resources.threads;
    try {
      for (int t = 0; t < resources.threads; ++t) workers.emplace_back([&] { work(resources); });
      wait(bytes_in_all);
    } catch (...) {
      stop(std::current_exception());
    }
    for (std::thread& worker : workers) worker.join();
    if (!options_.trace.empty()) trace_.write(options_.trace, begin, options_.trace_process, catalog_);
    if (failure_) std::rethrow_exception(failure_);

    report.threads = resources.threads;
    report.files = files_.count();
    report.files_direct = files_.count_direct();
    if (figures_.had_ring) {
      report.files_io_uring = std::count(in_background_.begin(), in_background_.end(), true);
    }
    report.bytes_read = figures_.bytes_read;
    report.read_requests = figures_.requests;
    report.boxes_with_gaps = figures_.boxes.boxes_with_gaps;
    report.boxes_in_pieces = figures_.boxes.boxes_in_pieces;
    report.peak_staging_bytes = figures_.staging_bytes;
    report.read_seconds = std::chrono::duration<double>(figures_.reading).count() / resources.threads;
    report.decode_seconds = std::chrono::duration<double>(figures_.decoding).count() / resources.threads;
  }

  /// The error with the names of the tensors that it leaves partly written.
  Error with_names(const Error& error) const {
    std::vector<std::string> names = written_.partly_written(specs_);
    std::string message = error.what();
    if (!names.empty()) {
      message += "\npartly written:";
      for (const std::string& line : grouped_names(names)) message += "\n  " + line;
    }
    Error named(error.kind, message, error.system_error);
    named.partly_written = std::move(names);
    return named;
  }

  /// Too little staging for whole pages means reading through the page cache.
  static DirectIo direct_io_of(const LoadOptions& options) {
    const bool room =
        options.staging_bytes == 0 || options.staging_bytes >= TaskReader::smallest_buffer_for_pages;
    return room ? options.direct_io : DirectIo::never;
  }

  /// Opens all files that the plan needs, and decides for each of them how it is read.
  void open_files() {
    if (options_.reads == Reads::io_uring && !has_io_uring()) {
      throw Error(ErrorKind::argument,
                  "reads: io_uring was asked for, but this build or this kernel does not offer it; use "
                  "\"auto\" or \"pread\"");
    }
    std::set<std::uint32_t> tensors;
    for (const Transfer& transfer : plan_.transfers) {
      if (is_empty(transfer.source_box)) continue;
      tensors.insert(transfer.source);
      if (transfer.scales >= 0) tensors.insert(static_cast<std::uint32_t>(transfer.scales));
    }
    costs_.assign(catalog_.files.size(), costs_of_cached_files);
    in_background_.assign(catalog_.files.size(), false);
    const bool may_use_uring = options_.reads != Reads::pread && has_io_uring();
    for (const std::uint32_t t : tensors) {
      const SourceTensor& tensor = catalog_.tensors[t];
      const OpenFile& file = files_.of(tensor);
      if (!file.is_cached) {
        costs_[tensor.file] = costs_of_files_on_disk;
        some_file_is_on_disk_ = true;
      }
      in_background_[tensor.file] = may_use_uring && (options_.reads == Reads::io_uring || !file.is_cached ||
                                                      file.direct_descriptor >= 0);
    }
  }

  Resources settle() const {
    if (options_.staging_bytes > 0 && options_.staging_bytes < smallest_buffer_bytes) {
      throw Error(ErrorKind::argument, "staging_bytes is " + std::to_string(options_.staging_bytes) +
                                           "; expected at least " + std::to_string(smallest_buffer_bytes));
    }
    const bool background = std::count(in_background_.begin(), in_background_.end(), true) > 0;
    const bool from_disk = some_file_is_on_disk_ || files_.count_direct() > 0;
    // No more threads than there can be tasks.
    const std::size_t most_tasks =
        std::max<std::size_t>({1, plan_.transfers.size(), plan_.bytes_needed / smallest_buffer_bytes});
    std::size_t threads = static_cast<std::size_t>(options_.threads > 0 ? options_.threads : processors());
    if (from_disk && !background) threads *= threads_that_wait;
    threads = std::min({threads, most_threads, most_tasks});
    std::size_t reads = background ? std::clamp(reads_from_disk / threads, std::size_t{2}, most_reads) : 1;
    if (devices_.any()) reads += copies_of_thread;
    std::size_t buffer_bytes = default_buffer_bytes;
    if (from_disk || devices_.any()) {
      buffer_bytes =
          std::clamp(staging_for_disks / (threads * reads), default_buffer_bytes, largest_buffer_bytes);
    } else if (options_.huge_pages) {
      buffer_bytes = huge_page_bytes;
    }

    if (options_.staging_bytes > 0) {
      const std::size_t smallest =
          files_.count_direct() > 0 ? TaskReader::smallest_buffer_for_pages : smallest_buffer_bytes;
      const std::size_t buffers = options_.staging_bytes / smallest;
      threads = std::min(threads, buffers);
      reads = std::min(reads, buffers / threads);
      buffer_bytes = std::min(largest_buffer_bytes, options_.staging_bytes / (threads * reads));
    }
    if (devices_.any()) buffer_bytes = std::min(buffer_bytes, devices_.block_bytes());
    const bool huge_pages =
        (options_.huge_pages || from_disk) && buffer_bytes >= huge_page_bytes && !devices_.any();
    if (huge_pages) buffer_bytes -= buffer_bytes % huge_page_bytes;
    return {static_cast<int>(threads), static_cast<int>(reads), buffer_bytes, huge_pages};
  }

  std::uint64_t bytes_to_read(std::size_t task_bytes) const {
    std::uint64_t bytes = 0;
    ReadTask task;
    for (TaskCutter cutter(plan_, catalog_, task_bytes, costs_); cutter.next(task);) bytes += task.bytes();
    return bytes;
  }

  bool next_task(ReadTask& task) {
    const std::lock_guard lock(tasks_mutex_);
    return !stopped_ && cutter_->next(task);
  }

  void work(const Resources& resources) {
    Figures figures;
    std::vector<Trace::Event> events;
    try {
      devices_.use_one();
      TaskReader reader(
          plan_, catalog_, specs_, files_, in_background_,
          {resources.buffers_per_thread, resources.buffer_bytes, resources.huge_pages, devices_.calls()},
          written_);
      CopiesUnderWay copies(reader);
      ReadTask task;
      for (;;) {
        const Clock::time_point begin = Clock::now();
        StagedTask* staged = nullptr;
        copies.release_done();
        // Fills the buffers before it waits; a read that needs no waiting is decoded while it is in cache.
        while (staged == nullptr && reader.has_room() && next_task(task)) {
          staged = reader.begin(task);
        }
        if (staged == nullptr && !stopped_ && !reader.is_busy() && copies.any()) {
          copies.wait_for_one();
          figures.reading += Clock::now() - begin;
          continue;
        }
        if (staged == nullptr && (stopped_ || !reader.is_busy())) break;
        const char* const what = staged == nullptr ? "wait" : "read";
        if (staged == nullptr) staged = reader.wait();
        const Clock::time_point read = Clock::now();
        DevicePlacer* const device = device_of(*staged);
        figures.boxes.count(staged->task.weights);
        figures.boxes.count(staged->task.scales);
        bytes_read_ += staged->task.bytes();
        const std::uint32_t tensor = plan_.transfers[staged->task.transfer].source;
        const std::uint64_t bytes = staged->task.bytes();
        if (device != nullptr) {
          copies.begin(*staged, *device);
        } else {
          place(*staged);
          reader.release(*staged);
        }
        const Clock::time_point placed = Clock::now();
        figures.reading += read - begin;
        figures.decoding += placed - read;
        if (!options_.trace.empty()) {
          events.push_back({what, tensor, bytes, begin, read});
          events.push_back({device == nullptr ? "decode" : "copy", tensor, bytes, read, placed});
        }
      }
      figures.bytes_read = reader.bytes_read();
      figures.requests = reader.requests();
      figures.staging_bytes = reader.staging_bytes();
      figures.had_ring = reader.has_ring();
      if (!stopped_) reader.close();
    } catch (...) {
      stop(std::current_exception());
    }
    if (!options_.trace.empty()) trace_.add(std::move(events));
    const std::lock_guard lock(mutex_);
    figures_.add(figures);
    --running_;
    changed_.notify_all();
  }

  /// Null for a task of a tensor in CPU memory.
  DevicePlacer* device_of(const StagedTask& staged) const {
    return devices_.of(specs_[plan_.transfers[staged.task.transfer].destination]);
  }

  void place(const StagedTask& staged) {
    const Transfer& transfer = plan_.transfers[staged.task.transfer];
    const std::int64_t elements = volume(staged.task.box.size);
    if (!staged.is_in_place) {
      written_.begin(transfer.destination, elements);
      place_box(transfer, catalog_.tensors[transfer.source].dtype, staged.part(),
                specs_[transfer.destination]);
    }
    written_.end(transfer.destination, elements);
  }

  /// Reports progress until the threads are done. Whatever `progress` throws stops them.
  void wait(std::uint64_t bytes_in_all) {
    std::unique_lock lock(mutex_);
    for (;;) {
      const bool done = running_ == 0;
      lock.unlock();
      if (options_.check_for_interrupt) options_.check_for_interrupt();
      if (options_.progress) options_.progress(bytes_read_, bytes_in_all);
      lock.lock();
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
  const LoadOptions& options_;
  OpenFiles files_;
  WrittenParts written_;
  LoadDevices devices_;
  std::vector<ReadCosts> costs_;     // by index into Catalog::files, like the next
  std::vector<bool> in_background_;  // read by io_uring
  bool some_file_is_on_disk_ = false;
  Trace trace_;

  std::mutex tasks_mutex_;  // guards the next
  TaskCutter* cutter_ = nullptr;
  std::atomic<std::uint64_t> bytes_read_{0};  // as the tasks count them, for the progress
  std::atomic<bool> stopped_{false};

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  int running_ = 0;
  std::exception_ptr failure_;
  Figures figures_;
};

}  // namespace

LoadReport load(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
                const LoadOptions& options) {
  const Clock::time_point begin = Clock::now();
  expect_memory(plan, specs);
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
  Engine(plan, catalog, specs, options).run(report);
  report.total_seconds = seconds_between(begin, Clock::now());
  return report;
}

}  // namespace shardwright
