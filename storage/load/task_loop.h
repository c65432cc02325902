#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "storage/load/device_placer.h"
#include "storage/load/task_reader.h"
#include "storage/load/trace.h"
#include "storage/seconds.h"

namespace shardwright {

/// What one thread did, or all together.
struct TaskFigures {
  std::int64_t boxes_with_gaps = 0;
  std::int64_t boxes_in_pieces = 0;
  Clock::duration reading{};  ///< or waiting for reads
  Clock::duration decoding{};

  void add(const TaskFigures& other);
};

/// What the threads that run tasks share. The functions are thread-safe.
struct TaskLoop {
  std::function<bool(JoinedTasks&)> next;  ///< gives the next tasks; false when there are none left

  /// Puts what has arrived where it belongs, and returns null; or returns the device that it is to be copied
  /// to.
  std::function<DevicePlacer*(const StagedTask&)> place;

  std::function<bool()> stopped;  ///< true when nothing more is to be done
};

/// Runs tasks on this thread until there are none, and all copies to devices are done. Throws what reading
/// and placing throw. Appends to `events` unless null.
void run_tasks(TaskReader& reader, const TaskLoop& loop, TaskFigures& figures,
               std::vector<Trace::Event>* events);

}  // namespace shardwright
