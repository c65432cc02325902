#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "planner/names/catalog.h"
#include "storage/boxes/box_reading.h"
#include "storage/boxes/joined_tasks.h"
#include "storage/boxes/placing.h"
#include "storage/device/device_staging.h"
#include "storage/device/staging.h"
#include "storage/files/open_files.h"
#include "storage/files/reads_under_way.h"

namespace shardwright {

/// Tasks whose bytes have arrived, of which one is looked at.
struct StagedTask {
  ReadTask task;
  const std::byte* elements = nullptr;  ///< where the weights' first element lies, in memory of the CPU or
                                        ///< of the device that they are for
  const std::byte* scales = nullptr;    ///< null where there are none
  bool is_in_place = false;             ///< read to its destination: nothing is left to do
  bool is_on_device = false;            ///< read straight into the device that it is for
  Staging staging;
  DeviceStaging device_staging;
  OpenFiles::Uses files;  ///< while they are read
  int reads_under_way = 0;
  std::chrono::steady_clock::time_point begun, arrived;  ///< of reads in the background
  JoinedTasks joined;                                    ///< all of them, but for `task`
  std::size_t turn = 0;                                  ///< of `task` among them
  int copies = 0;                                        ///< of them to devices, under way

  StagedTask(bool huge_pages, const DeviceCalls* devices, const GpuDirectCalls* gpu_direct,
             std::size_t device_bytes)
      : staging(huge_pages, devices), device_staging(devices, gpu_direct, device_bytes) {}

  /// Bytes of all of them, with the gaps between them.
  std::uint64_t requested_bytes() const;

  BoxInMemory part() const;

  /// Turns to the next of the tasks that the same request has brought; false where `task` was the last.
  bool turn_to_next();

  /// Bytes from the first element to the end of the scales, or of the elements where there are none or where
  /// the scales lie apart, as they may in a request for several tasks.
  std::size_t span() const;

  /// Bytes of scales that span() leaves out.
  std::size_t scales_apart() const;

 private:
  friend class TaskReader;
  void find_in_request();
  const std::byte* request_ = nullptr;  // where what one request brings begins
  ArrivedBytes bytes_, scale_bytes_;    // of objects, left where they arrived; the second of scales apart
  std::size_t most_arrived_ = 0;        // bytes of such, of any of the tasks
};

/// Reads the tasks of one thread into staging, one at a time or several at once in the background. Files and
/// catalog must outlive it.
class TaskReader {
 public:
  struct Buffers {
    int count = 1;          ///< tasks under way at a time
    std::size_t bytes = 0;  ///< of staging for each
    bool huge_pages = false;
    const DeviceCalls* devices = nullptr;        ///< they are pinned for these; see Staging
    const GpuDirectCalls* gpu_direct = nullptr;  ///< null: nothing is read straight into devices

    /// Where a task is staged, aligned to pages, in place of memory of the reader's own; null: there.
    std::function<std::byte*(const ReadTask&)> memory = nullptr;

    const std::atomic<bool>* stopped =
        nullptr;  ///< once it is true, wait() may throw: see reads_of_objects()
  };

  /// Where the weights of a task belong if they need no decoding and lie there as in the file; else null.
  using InPlace = std::function<std::byte*(const ReadTask&)>;

  /// The CUDA device that the task is for; -1: none, it is for CPU memory.
  using DeviceOf = std::function<int(const ReadTask&)>;

  /// `in_background` says for each of the catalog's files whether it is read while others are decoded: files
  /// by io_uring, objects by a thread for each buffer. Where this thread gets no ring, files are read at
  /// once. Without `in_place` all is read into staging.
  TaskReader(const Catalog& catalog, OpenFiles& files, const std::vector<bool>& in_background,
             const Buffers& buffers, InPlace in_place = nullptr, DeviceOf device_of = nullptr);

  /// A buffer must have so many bytes for reads past the page cache.
  static constexpr std::size_t smallest_buffer_for_pages = std::size_t{64} << 10;

  /// What a task may take of a buffer of that size, so that reads can be rounded out to whole pages.
  static std::size_t task_bytes_of(std::size_t buffer_bytes);

  /// What one request for several tasks may bring.
  static std::size_t request_bytes_of(std::size_t buffer_bytes);

  /// The size of a buffer for tasks of up to so many bytes, in whole pages.
  static std::size_t memory_bytes_of(std::size_t task_bytes);

  bool has_room() const { return !free_.empty() && ready_.empty(); }

  /// Begins to read tasks, which are taken, with their memory left for others. Returns them if they have
  /// arrived already, null if they are under way. REQUIRES: has_room(). Throws Error(io) naming file, offset
  /// and tensor, of several the first.
  StagedTask* begin(JoinedTasks& joined);

  /// True while a task is under way, or has arrived and was not returned yet.
  bool is_busy() const { return !ready_.empty() || tasks_under_way_ > 0; }

  /// Waits for a task to arrive. REQUIRES: is_busy().
  StagedTask* wait();

  /// The same, but waits no longer than that: null if none has arrived by then, or none is under way.
  StagedTask* wait_for(std::chrono::microseconds longest);

  /// Gives the buffer of a task that was returned back for another.
  void release(StagedTask& task);

  /// Ends the reads that are under way, whose tasks are given up, and gives their files back: others may wait
  /// for them.
  void give_up();

  /// Gives the staging back. No task may be under way or in use. Throws Error(device) for pinned memory.
  void close();

  std::uint64_t bytes_read() const { return bytes_read_; }
  std::uint64_t bytes_gpu_direct() const { return bytes_gpu_direct_; }  ///< of them, straight into devices
  std::uint64_t requests() const { return requests_; }
  std::size_t staging_bytes() const;
  std::size_t staging_bytes_on(int device) const;
  bool has_ring() const { return under_way_ != nullptr && !reads_objects_; }

 private:
  /// Bytes of a file that are wanted at a place in memory.
  struct Extent {
    const SourceTensor* tensor;  ///< for messages
    const OpenFile* file;        ///< that the task keeps open
    std::uint64_t begin;
    std::uint64_t length;
    std::byte* to;     ///< null: they stay where they arrive
    bool whole_pages;  ///< read past the page cache, with the rest of the first and the last page around it
  };
  struct ReadUnderWay {
    StagedTask* task = nullptr;
    Extent extent{};
  };

  bool reads_pages(const OpenFile& file) const;
  OpenFiles::Uses files_for(const ReadTask& task);
  void lay_out(StagedTask& staged);
  void lay_out_joined(StagedTask& staged);
  bool leave_where_it_arrives(StagedTask& staged);
  void lay_out_in(std::byte* memory, StagedTask& staged);
  bool read_into_device(StagedTask& staged);
  std::byte* add_extents(const SourceTensor& tensor, const OpenFile& file, const BoxReading& reading,
                         std::byte*& memory);
  void read_now(const Extent& extent);
  void read_through_cache(const Extent& extent);
  void begin_read(StagedTask& task, const Extent& extent);
  void finish(const ReadsUnderWay::Completion& completion);
  void arrived(StagedTask& task);

  const Catalog& catalog_;
  OpenFiles& files_;
  const std::vector<bool>& in_background_;
  const bool reads_objects_;   // the catalog is at an address
  const bool may_read_pages_;  // buffers are large enough for it
  const InPlace in_place_;
  const std::function<std::byte*(const ReadTask&)> memory_;
  const DeviceOf device_of_;
  const std::size_t smallest_staging_;  // pinned memory does not grow: that would wait for the device
  const GpuDirectCalls* const gpu_direct_;

  std::deque<StagedTask> tasks_;  // never moved: others point to them
  std::vector<StagedTask*> free_;
  std::deque<StagedTask*> ready_;
  int tasks_under_way_ = 0;
  std::vector<Extent> extents_;  // of the task that begins; kept for its memory

  std::vector<ReadUnderWay> reads_;         // by tag
  std::vector<std::uint64_t> unused_tags_;  // indices of reads_
  std::uint64_t bytes_read_ = 0;
  std::uint64_t bytes_gpu_direct_ = 0;
  std::uint64_t requests_ = 0;
  std::unique_ptr<ReadsUnderWay> under_way_;  // last: it waits for reads before the memory above goes
};

}  // namespace shardwright
