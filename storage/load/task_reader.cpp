#include "storage/load/task_reader.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "planner/error.h"
#include "storage/files/page_cache.h"
#include "storage/files/plain_http.h"
#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"
#include "storage/files/uninterrupted.h"
#include "storage/memory_units.h"
#include "storage/rounded_up.h"

namespace shardwright {
namespace {

/// Weights and scales may each begin and end inside a page, and so may pinned memory.
constexpr std::size_t room_for_pages = 5 * direct_alignment;

/// Reads the pages that hold [begin, begin + length) past the page cache. `to` stands for `begin`. Returns
/// the bytes read; 0 if the kernel refuses or the file has ended: the caller reads again, through the page
/// cache, and learns why.
std::uint64_t read_pages(int descriptor, std::uint64_t begin, std::uint64_t length, std::byte* to) {
  const std::uint64_t before = begin % direct_alignment;
  const std::uint64_t wanted = before + length;
  std::uint64_t got = 0;
  while (got < wanted) {
    const ssize_t more = uninterrupted([&] {
      return ::pread(descriptor, to - before + got, rounded_up(wanted, direct_alignment) - got,
                     static_cast<off_t>(begin - before + got));
    });
    if (more <= 0) return 0;
    got += static_cast<std::uint64_t>(more);
    if (got < wanted && got % direct_alignment != 0) return 0;
  }
  return got;
}

}  // namespace

BoxInMemory StagedTask::part() const {
  BoxInMemory part{task.box, {elements, task.weights.staged_strides}};
  if (scales != nullptr) part.scales = {scales, task.scales.staged_strides};
  part.global = task.global;
  return part;
}

std::uint64_t StagedTask::requested_bytes() const {
  return joined.tasks.size() > 1 ? joined.end - joined.begin : task.bytes();
}

bool StagedTask::turn_to_next() {
  if (turn + 1 >= joined.tasks.size()) return false;
  std::swap(task, joined.tasks[++turn]);
  find_in_request();
  return true;
}

void StagedTask::find_in_request() {
  elements = request_ + (task.weights.begin - joined.begin);
  if (task.scale_source < 0) {
    scales = nullptr;
  } else {
    scales = scale_bytes_ ? scale_bytes_.get() : request_ + (task.scales.begin - joined.begin);
  }
}

std::size_t StagedTask::span() const {
  if (scales == nullptr || scales_apart() > 0) return task.weights.staged_bytes;
  return static_cast<std::size_t>(scales - elements) + task.scales.staged_bytes;
}

std::size_t StagedTask::scales_apart() const {
  const std::byte* const end = elements + task.weights.staged_bytes;
  if (scales == nullptr ||
      (scales >= end && scales - end < static_cast<std::ptrdiff_t>(2 * direct_alignment)))
    return 0;
  return task.scales.staged_bytes;
}

TaskReader::TaskReader(const Catalog& catalog, OpenFiles& files, const std::vector<bool>& in_background,
                       const Buffers& buffers, InPlace in_place, DeviceOf device_of)
    : catalog_(catalog),
      files_(files),
      in_background_(in_background),
      reads_objects_(is_remote(catalog.directory)),
      may_read_pages_(buffers.bytes >= smallest_buffer_for_pages),
      in_place_(std::move(in_place)),
      memory_(buffers.memory),
      device_of_(std::move(device_of)),
      smallest_staging_(buffers.devices == nullptr ? 0 : buffers.bytes),
      gpu_direct_(may_read_pages_ && device_of_ ? buffers.gpu_direct : nullptr) {
  for (int i = 0; i < buffers.count; ++i) {
    free_.push_back(&tasks_.emplace_back(buffers.huge_pages, buffers.devices, gpu_direct_, buffers.bytes));
  }
  if (std::count(in_background.begin(), in_background.end(), true) > 0) {
    const auto depth = static_cast<unsigned>(std::max(8, 2 * buffers.count));  // weights and scales
    under_way_ = reads_objects_ ? reads_of_objects(static_cast<unsigned>(buffers.count), buffers.stopped)
                                : reads_by_uring(depth);
    reads_.resize(depth);
    for (std::uint64_t tag = 0; tag < depth; ++tag) unused_tags_.push_back(tag);
  }
}

std::size_t TaskReader::task_bytes_of(std::size_t buffer_bytes) {
  return buffer_bytes >= smallest_buffer_for_pages ? buffer_bytes - room_for_pages : buffer_bytes;
}

std::size_t TaskReader::request_bytes_of(std::size_t buffer_bytes) {
  return task_bytes_of(buffer_bytes) - cache_line;
}

std::size_t TaskReader::memory_bytes_of(std::size_t task_bytes) {
  const bool for_pages = task_bytes + room_for_pages >= smallest_buffer_for_pages;
  return rounded_up(task_bytes + (for_pages ? room_for_pages : 0), direct_alignment);
}

std::size_t TaskReader::staging_bytes() const {
  std::size_t bytes = 0;
  for (const StagedTask& task : tasks_) bytes += std::max(task.staging.size(), task.most_arrived_);
  return bytes;
}

std::size_t TaskReader::staging_bytes_on(int device) const {
  std::size_t bytes = 0;
  for (const StagedTask& task : tasks_) bytes += task.device_staging.size_on(device);
  return bytes;
}

void TaskReader::give_up() {
  if (tasks_under_way_ > 0) under_way_.reset();  // waits for the kernel
  for (StagedTask& task : tasks_) task.files = {};
}

void TaskReader::close() {
  if (catalog_.tensors.empty()) return;  // nothing has been staged
  for (StagedTask& task : tasks_) {
    task.device_staging.close(catalog_.tensors[task.task.source].name);
    if (task.staging.size() > 0) task.staging.close(catalog_.tensors[task.task.source].name);
  }
}

bool TaskReader::reads_pages(const OpenFile& file) const {
  return may_read_pages_ && file.direct_descriptor >= 0;
}

/// Waits, where the process may not have more files open, for reads that are under way: first for those of
/// this thread, as it could not wait for others while it keeps files from them.
OpenFiles::Uses TaskReader::files_for(const ReadTask& task) {
  const SourceTensor& weights = catalog_.tensors[task.source];
  const SourceTensor* const scales =
      task.scale_source < 0 ? nullptr : &catalog_.tensors[static_cast<std::size_t>(task.scale_source)];
  while (tasks_under_way_ > 0) {
    OpenFiles::Uses uses = files_.try_to_use(weights, scales);
    if (uses.weights) return uses;
    finish(under_way_->wait());
  }
  return files_.use(weights, scales);
}

/// Reads the task straight into the device it is for. False if it is for none, or that is refused.
bool TaskReader::read_into_device(StagedTask& staged) {
  const ReadTask& task = staged.task;
  const bool has_scales = task.scale_source >= 0;
  if (gpu_direct_ == nullptr || !task.weights.in_one_request) return false;
  if (has_scales && !task.scales.in_one_request) return false;
  if (staged.files.weights->gpu_direct == nullptr) return false;
  if (staged.files.scales && staged.files.scales->gpu_direct == nullptr) return false;
  const int device = device_of_(task);
  if (device < 0) return false;
  std::byte* const memory = staged.device_staging.room_on(device, staged_bytes(task) + room_for_pages);
  if (memory == nullptr) return false;
  lay_out_in(memory, staged);
  for (const Extent& extent : extents_) {
    const std::uint64_t before = extent.begin % direct_alignment;
    const std::uint64_t wanted = before + extent.length;
    ++requests_;
    const std::int64_t got = gpu_direct_->read(extent.file->gpu_direct, memory,
                                               static_cast<std::size_t>(extent.to - before - memory),
                                               rounded_up(wanted, direct_alignment), extent.begin - before);
    if (got < 0 || static_cast<std::uint64_t>(got) < wanted) {
      files_.give_up_gpu_direct(*extent.tensor);
      return false;
    }
    bytes_read_ += static_cast<std::uint64_t>(got);
    bytes_gpu_direct_ += static_cast<std::uint64_t>(got);
  }
  staged.is_on_device = true;
  return true;
}

/// Settles where the task's bytes go in CPU memory, and lists the reads that bring them there.
void TaskReader::lay_out(StagedTask& staged) {
  const ReadTask& task = staged.task;
  const SourceTensor& source = catalog_.tensors[task.source];
  const OpenFile& file = *staged.files.weights;
  extents_.clear();
  staged.scales = nullptr;
  if (staged.joined.tasks.size() > 1) return lay_out_joined(staged);

  if (in_place_ && task.weights.in_one_request && !reads_pages(file)) {
    if (std::byte* place = in_place_(task)) {
      extents_.push_back({&source, &file, task.weights.begin, task.weights.staged_bytes, place, false});
      staged.is_in_place = true;
      return;
    }
  }

  if (memory_) return lay_out_in(memory_(task), staged);
  if (leave_where_it_arrives(staged)) return;
  const std::size_t needed = staged_bytes(task) + (may_read_pages_ ? room_for_pages : 0);
  lay_out_in(staged.staging.room_for(std::max(needed, smallest_staging_), source.name), staged);
}

/// The same for several tasks, which one read brings.
void TaskReader::lay_out_joined(StagedTask& staged) {
  if (leave_where_it_arrives(staged)) return;
  const SourceTensor& first = catalog_.tensors[staged.task.source];
  const std::uint64_t bytes = staged.joined.end - staged.joined.begin;
  std::byte* const memory =
      staged.staging.room_for(std::max(bytes + cache_line, smallest_staging_), first.name);
  std::byte* const place =
      memory + staged.joined.begin % cache_line;  // all are then as aligned as in the file
  extents_.push_back({&first, staged.files.weights.get(), staged.joined.begin, bytes, place, false});
  staged.request_ = place;
  staged.find_in_request();
}

/// Lists reads whose bytes are decoded where they arrive. False where they are needed elsewhere: in pinned
/// memory, together, of runs apart, or where plain HTTP brings them without a copy.
bool TaskReader::leave_where_it_arrives(StagedTask& staged) {
  const ReadTask& task = staged.task;
  const bool has_scales = task.scale_source >= 0;
  const bool is_joined = staged.joined.tasks.size() > 1;
  if (!reads_objects_ || smallest_staging_ > 0) return false;
  if (!task.weights.in_one_request || (has_scales && !task.scales.in_one_request)) return false;
  const SourceTensor& source = catalog_.tensors[task.source];
  const OpenFile& file = *staged.files.weights;
  if (is_had_by_plain_http(file.file->path())) return false;
  staged.most_arrived_ = std::max(staged.most_arrived_, staged.staging.size());
  staged.staging.close(source.name);  // there are never both
  JoinedTasks& joined = staged.joined;
  if (!is_joined) {
    joined.begin = task.weights.begin;
    joined.end = task.weights.begin + task.weights.staged_bytes;
    if (has_scales) {
      const SourceTensor& scales = catalog_.tensors[static_cast<std::size_t>(task.scale_source)];
      if (scales.file == source.file && task.scales.begin == joined.end) {
        joined.end += task.scales.staged_bytes;
      } else {
        const OpenFile& scale_file = staged.files.scales ? *staged.files.scales : file;
        extents_.push_back(
            {&scales, &scale_file, task.scales.begin, task.scales.staged_bytes, nullptr, false});
      }
    }
  }
  extents_.push_back({&source, &file, joined.begin, joined.end - joined.begin, nullptr, false});
  std::size_t bytes = 0;
  for (const Extent& extent : extents_) bytes += extent.length;
  staged.most_arrived_ = std::max(staged.most_arrived_, bytes);
  return true;
}

void TaskReader::release(StagedTask& task) {
  task.bytes_ = nullptr;
  task.scale_bytes_ = nullptr;
  free_.push_back(&task);
}

/// The same for staging that begins at `memory` and has room enough.
void TaskReader::lay_out_in(std::byte* memory, StagedTask& staged) {
  const ReadTask& task = staged.task;
  const SourceTensor& source = catalog_.tensors[task.source];
  const OpenFile& file = *staged.files.weights;
  extents_.clear();
  staged.scales = nullptr;
  std::byte* const elements = add_extents(source, file, task.weights, memory);
  staged.elements = elements;
  if (task.scale_source < 0) return;

  const SourceTensor& scales = catalog_.tensors[static_cast<std::size_t>(task.scale_source)];
  Extent& weights = extents_.front();
  const std::uint64_t end = weights.begin + weights.length;
  const bool follow = may_read_pages_ && task.weights.in_one_request && task.scales.in_one_request &&
                      scales.file == source.file && task.scales.begin == end;
  if (follow) {  // one read brings both
    staged.scales = elements + (task.scales.begin - weights.begin);
    weights.length = task.scales.begin + task.scales.staged_bytes - weights.begin;
  } else {
    const OpenFile& scale_file = staged.files.scales ? *staged.files.scales : file;
    staged.scales = add_extents(scales, scale_file, task.scales, memory);
  }
}

/// Adds the reads for a box, into `memory`, which it moves on. Returns where the box's first byte will be: at
/// the same offset in a page as in the file, where whole pages are read.
std::byte* TaskReader::add_extents(const SourceTensor& tensor, const OpenFile& file,
                                   const BoxReading& reading, std::byte*& memory) {
  const bool whole_pages = reading.in_one_request && reads_pages(file);
  const std::uint64_t before = whole_pages ? reading.begin % direct_alignment : 0;
  const std::uint64_t unit = whole_pages ? direct_alignment : cache_line;
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  std::byte* const place = memory + (rounded_up(address, unit) - address) + before;
  memory = place - before + rounded_up(before + reading.staged_bytes, unit);
  if (reading.in_one_request) {
    extents_.push_back({&tensor, &file, reading.begin, reading.staged_bytes, place, whole_pages});
  } else {
    std::byte* to = place;
    for_each_run(reading, [&](std::uint64_t begin) {
      extents_.push_back({&tensor, &file, begin, reading.run_bytes, to, false});
      to += reading.run_bytes;
    });
  }
  return place;
}

StagedTask* TaskReader::begin(JoinedTasks& joined) {
  StagedTask& staged = *free_.back();
  free_.pop_back();
  std::swap(staged.joined, joined);
  staged.turn = 0;
  std::swap(staged.task, staged.joined.tasks.front());
  const ReadTask& task = staged.task;
  staged.is_in_place = false;
  staged.is_on_device = false;
  staged.files = files_for(task);
  if (read_into_device(staged)) {
    staged.files = {};
    return &staged;
  }
  lay_out(staged);
  const bool in_background =
      under_way_ && std::any_of(extents_.begin(), extents_.end(),
                                [&](const Extent& extent) { return in_background_[extent.tensor->file]; });
  if (!in_background) {
    for (const Extent& extent : extents_) read_now(extent);
    staged.files = {};
    return &staged;
  }
  ++tasks_under_way_;
  staged.begun = std::chrono::steady_clock::now();
  staged.reads_under_way = 1;  // stands for this call: the task has not arrived before all reads are begun
  for (const Extent& extent : extents_) {
    while (unused_tags_.empty()) finish(under_way_->wait());
    begin_read(staged, extent);
  }
  arrived(staged);
  return nullptr;
}

StagedTask* TaskReader::wait() {
  while (ready_.empty()) finish(under_way_->wait());
  StagedTask* const task = ready_.front();
  ready_.pop_front();
  return task;
}

StagedTask* TaskReader::wait_for(std::chrono::microseconds longest) {
  while (under_way_ != nullptr && ready_.empty() && tasks_under_way_ > 0) {
    const std::optional<ReadsUnderWay::Completion> completion = under_way_->wait_for(longest);
    if (!completion) break;
    finish(*completion);
  }
  return ready_.empty() ? nullptr : wait();
}

void TaskReader::arrived(StagedTask& task) {
  if (--task.reads_under_way > 0) return;
  if (task.bytes_) {
    task.request_ = task.bytes_.get();
    task.find_in_request();
  }
  --tasks_under_way_;
  task.files = {};
  task.arrived = std::chrono::steady_clock::now();
  ready_.push_back(&task);
}

void TaskReader::read_now(const Extent& extent) {
  if (extent.whole_pages) {
    ++requests_;
    const std::uint64_t got =
        read_pages(extent.file->direct_descriptor, extent.begin, extent.length, extent.to);
    bytes_read_ += got;
    if (got > 0) return;
    files_.give_up_direct(*extent.tensor);
  }
  read_through_cache(extent);
}

void TaskReader::read_through_cache(const Extent& extent) {
  ++requests_;
  read_of(*extent.file, *extent.tensor, extent.begin, extent.to, extent.length);
  bytes_read_ += extent.length;
}

void TaskReader::begin_read(StagedTask& task, const Extent& extent) {
  const std::uint64_t before = extent.whole_pages ? extent.begin % direct_alignment : 0;
  const std::uint64_t length =
      extent.whole_pages ? rounded_up(before + extent.length, direct_alignment) : extent.length;
  const std::uint64_t tag = unused_tags_.back();
  try {
    under_way_->read(*extent.file->file,
                     extent.whole_pages ? extent.file->direct_descriptor : extent.file->file->descriptor(),
                     extent.begin - before, extent.to - before, static_cast<std::uint32_t>(length), tag);
  } catch (const Error& error) {
    throw Error(error.kind,
                printable(extent.file->file->path().native()) + ": " + error.what() + "; reading tensor " +
                    extent.tensor->name + " from byte " + std::to_string(extent.begin),
                error.system_error);
  }
  unused_tags_.pop_back();
  reads_[tag] = {&task, extent};
  ++task.reads_under_way;
  ++requests_;
}

/// Takes note of a read that has ended. One that failed or fell short is made again through the page cache,
/// by the call that names what is wrong if it fails again.
void TaskReader::finish(const ReadsUnderWay::Completion& completion) {
  const ReadUnderWay read = reads_[completion.tag];
  unused_tags_.push_back(completion.tag);
  if (completion.failure) {
    naming_read(*read.extent.tensor, read.extent.begin, [&] { std::rethrow_exception(completion.failure); });
  }
  if (read.extent.to == nullptr) {
    const bool are_scales = read.extent.tensor != &catalog_.tensors[read.task->task.source];
    (are_scales ? read.task->scale_bytes_ : read.task->bytes_) = completion.bytes;
  }
  const std::uint64_t before = read.extent.whole_pages ? read.extent.begin % direct_alignment : 0;
  if (completion.result >= 0 &&
      static_cast<std::uint64_t>(completion.result) >= before + read.extent.length) {
    bytes_read_ += static_cast<std::uint64_t>(completion.result);
  } else {
    const bool is_refused =
        completion.result < 0 && completion.result != -EINTR && completion.result != -EAGAIN;
    if (is_refused && read.extent.whole_pages) files_.give_up_direct(*read.extent.tensor);
    read_through_cache(read.extent);
  }
  arrived(*read.task);
}

}  // namespace shardwright
