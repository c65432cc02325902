#include "storage/load/load.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include "kernels/decode.h"
#include "planner/error.h"
#include "storage/boxes/box_reading.h"
#include "storage/boxes/placing.h"
#include "storage/boxes/scale_checks.h"
#include "storage/files/open_files.h"
#include "storage/files/remote_calls.h"
#include "storage/format/row_checksums.h"
#include "storage/load/companions.h"
#include "storage/load/load_devices.h"
#include "storage/load/load_rest.h"
#include "storage/load/reading_resources.h"
#include "storage/load/task_loop.h"
#include "storage/load/task_reader.h"
#include "storage/load/trace.h"
#include "storage/load/written_parts.h"
#include "storage/no_memory.h"
#include "storage/seconds.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

/// A load of so few bytes takes longer to plan than to check.
constexpr std::uint64_t small_load_bytes = std::uint64_t{64} << 20;

/// The threads of one load and what they share.
class Engine {
 public:
  Engine(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
         const LoadOptions& options, Trace& trace, WrittenParts& written, LoadReport& report)
      : plan_(plan),
        catalog_(catalog),
        specs_(specs),
        options_(options),
        trace_(trace),
        report_(report),
        written_(written),
        devices_(plan, catalog, specs, options, written_),
        files_(catalog, direct_io_of(options)),
        reading_(open_files_of(plan, catalog, files_, options)),
        checks_(plan, catalog) {}

  void run() {
    try {
      run_plan();
      devices_.close_gpu_direct(files_);
      devices_.finish();
    } catch (const Error& error) {
      devices_.close_gpu_direct(files_);
      devices_.abandon();
      throw written_.with_names(error, specs_);
    } catch (const std::bad_alloc&) {
      devices_.close_gpu_direct(files_);
      devices_.abandon();
      throw written_.with_names(no_memory(), specs_);
    } catch (...) {
      devices_.close_gpu_direct(files_);
      devices_.abandon();
      throw;
    }
    devices_.report(report_);
  }

 private:
  void run_plan() {
    devices_.open();
    const bool some_direct = files_.count_direct() > 0;
    if (some_direct) files_.use_gpu_direct(devices_.open_gpu_direct());
    const Resources resources = resources_for(options_, reading_, some_direct, most_tasks_of(plan_),
                                              {devices_.block_bytes(), devices_.gpu_direct_bytes()});
    const std::size_t task_bytes = TaskReader::task_bytes_of(resources.buffer_bytes);
    const Companions companions(plan_, catalog_, files_, threads_for(catalog_.directory, resources.threads));
    companions_ = &companions;
    report_.bytes_read += companions.bytes_read();
    report_.read_requests += companions.requests();
    TaskCutter cutter(plan_, catalog_, task_bytes, reading_.costs);
    TaskJoiner joiner(cutter, catalog_,
                      joining_of(reading_, TaskReader::request_bytes_of(resources.buffer_bytes)));
    joiner_ = &joiner;
    const std::uint64_t bytes_in_all = options_.progress ? bytes_to_read(task_bytes) : 0;

    fill_zeros();
    std::vector<std::thread> workers;
    try {
      start(workers, resources);
      wait(bytes_in_all);
    } catch (...) {
      stop(std::current_exception());
    }
    for (std::thread& worker : workers) worker.join();
    if (failure_) std::rethrow_exception(failure_);

    report_.threads = static_cast<int>(workers.size());
    report_.bytes_checked = checks_.bytes();
    report_.files = files_.count();
    report_.files_direct = files_.count_direct();
    report_.files_remote = reading_.are_objects ? report_.files : 0;
    report_.files_io_uring = had_ring_ ? reading_.files_in_background() : 0;
    report_.boxes_with_gaps = figures_.boxes_with_gaps;
    report_.boxes_in_pieces = figures_.boxes_in_pieces;
    report_.read_seconds = seconds_of(figures_.reading) / report_.threads;
    report_.decode_seconds = seconds_of(figures_.decoding) / report_.threads;
  }

  /// What no file has, before the rest: a device does it in the order of its streams.
  void fill_zeros() {
    for (const std::uint32_t zero : plan_.zeros) {
      const TensorSpec& spec = specs_[zero];
      if (volume(spec.local_shape) == 0) continue;
      if (spec.device == DeviceKind::cuda) {
        devices_.fill_with_zeros(zero);
      } else {
        fill_with_zeros(spec);
      }
    }
  }

  void start(std::vector<std::thread>& workers, const Resources& resources) {
    workers.reserve(static_cast<std::size_t>(resources.threads));
    running_ = resources.threads;
    for (int t = 0; t < resources.threads; ++t) {
      try {
        workers.emplace_back([&, t] {
          prepare_for_exceptions();
          work(resources, t);
        });
      } catch (const std::system_error&) {  // the process may have no more threads: fewer do the work
        if (workers.empty()) throw;
        const std::lock_guard lock(mutex_);
        running_ -= resources.threads - t;
        return;
      }
    }
  }

  std::uint64_t bytes_to_read(std::size_t task_bytes) const {
    std::uint64_t bytes = 0;
    ReadTask task;
    for (TaskCutter cutter(plan_, catalog_, task_bytes, reading_.costs); cutter.next(task);)
      bytes += task.bytes();
    return bytes;
  }

  bool next_tasks(JoinedTasks& joined) {
    const std::lock_guard lock(tasks_mutex_);
    if (stopped_ || !joiner_->next(joined)) return false;
    for (ReadTask& task : joined.tasks) task.global = companions_->global_of(plan_.transfers[task.transfer]);
    return true;
  }

  void work(const Resources& resources, int number) {
    TaskFigures figures;
    std::vector<Trace::Event> events;
    try {
      devices_.use_one();
      TaskReader reader(
          catalog_, files_, reading_.in_background,
          {resources.buffers_per_thread, resources.buffer_bytes, resources.huge_pages, devices_.calls(),
           resources.gpu_direct ? devices_.gpu_direct() : nullptr, nullptr, &stopped_},
          [&](const ReadTask& task) { return place_of(task); },
          [&](const ReadTask& task) { return device_of(task); });
      const TaskLoop loop{[&](JoinedTasks& joined) { return next_tasks(joined); },
                          [&](const StagedTask& staged) { return place(staged); },
                          [&] { return stopped_.load(); }};
      run_tasks(reader, loop, figures, trace_.is_wanted() ? &events : nullptr);
      const std::lock_guard lock(mutex_);
      report_.bytes_read += reader.bytes_read();
      report_.bytes_gpu_direct += reader.bytes_gpu_direct();
      devices_.count(reader);
      report_.read_requests += reader.requests();
      report_.peak_staging_bytes += reader.staging_bytes();
      had_ring_ = had_ring_ || reader.has_ring();
      if (!stopped_) reader.close();
    } catch (...) {
      stop(std::current_exception());
    }
    try {
      if (trace_.is_wanted()) trace_.add("load " + std::to_string(number), std::move(events));
    } catch (...) {
      stop(std::current_exception());
    }
    const std::lock_guard lock(mutex_);
    figures_.add(figures);
    --running_;
    changed_.notify_all();
  }

  /// Where the task is read to if it needs no staging; else null.
  std::byte* place_in_memory(const ReadTask& task) const {
    const Transfer& transfer = plan_.transfers[task.transfer];
    const TensorSpec& spec = specs_[transfer.destination];
    if (spec.device != DeviceKind::cpu) return nullptr;
    return place_as_it_is(transfer, catalog_.tensors[task.source].dtype, task.box,
                          task.weights.staged_strides, spec);
  }

  std::byte* place_of(const ReadTask& task) {
    std::byte* const place = place_in_memory(task);
    if (place != nullptr) written_.begin(plan_.transfers[task.transfer].destination, volume(task.box.size));
    return place;
  }

  int device_of(const ReadTask& task) const {
    const TensorSpec& spec = specs_[plan_.transfers[task.transfer].destination];
    return spec.device == DeviceKind::cuda ? spec.device_index : -1;
  }

  bool is_checked(std::uint32_t tensor) const {
    if (options_.checks != Checks::automatic) return options_.checks == Checks::all;
    return plan_.bytes_needed <= small_load_bytes ||
           reading_.costs[catalog_.tensors[tensor].file] == costs_of_files_on_disk;
  }

  void check(const StagedTask& staged) {
    if (!checks_.any() || staged.is_on_device) return;
    BoxInMemory part = staged.part();
    if (staged.is_in_place) part.elements.data = place_in_memory(staged.task);
    if (is_checked(staged.task.source))
      checks_.add(staged.task.source, staged.task.shape, part.box, part.elements);
    if (part.scales.data == nullptr) return;
    const auto scales = static_cast<std::uint32_t>(staged.task.scale_source);
    if (!is_checked(scales)) return;
    checks_.add(scales, staged.task.scale_shape, staged.task.scale_box, part.scales);
  }

  DevicePlacer* place(const StagedTask& staged) {
    bytes_read_ += staged.task.bytes();
    check(staged);
    const Transfer& transfer = plan_.transfers[staged.task.transfer];
    if (!staged.is_on_device) expect_meant_scales(transfer, staged.part(), catalog_);
    const TensorSpec& spec = specs_[transfer.destination];
    if (DevicePlacer* const device = devices_.of(spec)) return device;
    const std::int64_t elements = volume(staged.task.box.size);
    if (!staged.is_in_place) {
      written_.begin(transfer.destination, elements);
      place_box(transfer, catalog_.tensors[transfer.source].dtype, staged.part(), spec);
    }
    written_.end(transfer.destination, elements);
    return nullptr;
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
  Trace& trace_;
  LoadReport& report_;  // under mutex_, while threads run
  WrittenParts& written_;
  LoadDevices devices_;
  OpenFiles files_;
  const FileReading reading_;
  RowChecks checks_;

  const Companions* companions_ = nullptr;  // while it runs

  std::mutex tasks_mutex_;  // guards the next
  TaskJoiner* joiner_ = nullptr;
  std::atomic<std::uint64_t> bytes_read_{0};  // as the tasks count them, for the progress
  std::atomic<bool> stopped_{false};

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  int running_ = 0;
  std::exception_ptr failure_;
  TaskFigures figures_;
  bool had_ring_ = false;
};

}  // namespace

LoadReport load_rest(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
                     const LoadOptions& options, Trace& trace, WrittenParts& written) {
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
  for (const std::uint32_t zero : plan.zeros) report.zeroed.push_back(specs[zero].fqn);
  report.instruction_set = instruction_set();
  try {
    Engine(plan, catalog, specs, options, trace, written, report).run();
  } catch (...) {
    try {
      trace.write(catalog);  // of what was done until then
    } catch (...) {          // the first failure says more
    }
    throw;
  }
  trace.write(catalog);
  report.total_seconds = seconds_since(begin);
  return report;
}

LoadReport load(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
                const LoadOptions& options) {
  Trace trace(options.trace, options.trace_process, options.check_for_interrupt);
  WrittenParts written(plan, specs.size());
  return load_rest(plan, catalog, specs, options, trace, written);
}

}  // namespace shardwright
