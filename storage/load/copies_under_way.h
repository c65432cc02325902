#pragma once

#include <deque>

#include "storage/load/device_placer.h"
#include "storage/load/task_reader.h"

namespace shardwright {

/// The tasks of one thread that are being copied to devices: their buffers go back to the reader once all
/// copies of a buffer are done.
class CopiesUnderWay {
 public:
  explicit CopiesUnderWay(TaskReader& reader) : reader_(reader) {}
  CopiesUnderWay(const CopiesUnderWay&) = delete;
  CopiesUnderWay& operator=(const CopiesUnderWay&) = delete;

  /// Waits, as the reader's memory may go next.
  ~CopiesUnderWay();

  bool any() const { return !copies_.empty(); }

  /// Begins to copy the task that is looked at. Throws Error(device), like the next two.
  void begin(StagedTask& task, DevicePlacer& placer);

  /// Releases the tasks whose copies are done. REQUIRES: all of them have begun, like the next.
  void release_done();

  /// Waits for the one that was begun first, and releases it. REQUIRES: any().
  void wait_for_one();

 private:
  struct Copy {
    StagedTask* task;
    std::uint32_t transfer;
    DevicePlacer* placer;
    DeviceEvent done;
  };

  void release_first();

  TaskReader& reader_;
  std::deque<Copy> copies_;
};

}  // namespace shardwright
