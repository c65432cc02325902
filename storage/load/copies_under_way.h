#pragma once

#include <deque>

#include "storage/load/device_placer.h"
#include "storage/load/task_reader.h"

namespace shardwright {

/// The tasks of one thread that are being copied to devices: their buffers go back to the reader once the
/// copies are done.
class CopiesUnderWay {
 public:
  explicit CopiesUnderWay(TaskReader& reader) : reader_(reader) {}
  CopiesUnderWay(const CopiesUnderWay&) = delete;
  CopiesUnderWay& operator=(const CopiesUnderWay&) = delete;

  /// Waits, as the reader's memory may go next.
  ~CopiesUnderWay();

  bool any() const { return !copies_.empty(); }

  /// Begins to copy. Throws Error(device), like the next two.
  void begin(StagedTask& task, DevicePlacer& placer);

  /// Releases the tasks whose copies are done.
  void release_done();

  /// Waits for the one that was begun first, and releases it. REQUIRES: any().
  void wait_for_one();

 private:
  struct Copy {
    StagedTask* task;
    DevicePlacer* placer;
    DeviceEvent done;
  };

  void release_first();

  TaskReader& reader_;
  std::deque<Copy> copies_;
};

}  // namespace shardwright
