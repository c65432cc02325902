#pragma once

#include <chrono>
#include <future>

#include "python_shim/bindings/bindings.h"
#include "storage/progress.h"
#include "storage/threads.h"

namespace shardwright {

/// Returns work(progress), done by another thread, while this one looks for Ctrl-C: then the work is stopped
/// where it counts its progress, and KeyboardInterrupt is raised. `watched` may be null. The caller does not
/// hold the GIL.
template <typename Work>
auto interruptible(Progress* watched, const Work& work) {
  Progress own;
  Progress& progress = watched != nullptr ? *watched : own;
  auto result = std::async(std::launch::async, [&] {
    prepare_for_exceptions();
    return work(progress);
  });
  while (result.wait_for(std::chrono::milliseconds(50)) != std::future_status::ready) {
    try {
      check_for_interrupt();
    } catch (...) {
      progress.stopped = true;
      result.wait();
      throw;
    }
  }
  return result.get();
}

}  // namespace shardwright
