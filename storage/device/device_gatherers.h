#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>

#include "storage/device/device_gatherer.h"
#include "storage/device/devices_in_use.h"

namespace shardwright {

/// What threads that gather take, each for each device.
struct GatherBounds {
  int threads = 1;
  std::size_t batch_bytes = 0;  ///< see DeviceGatherer
  std::size_t block_bytes = 0;
};

/// Bounds for up to so many threads, with so much pinned memory in all, and memory of each device. Where that
/// is too little for batches that are worth it, fewer threads have to do.
GatherBounds gather_bounds(int threads, std::size_t pinned_bytes, std::size_t devices,
                           std::size_t device_memory);

/// Bounds for `count` blocks of up to so many bytes, each of which is to fit into a batch. `threads` may be
/// 0: as many as this process may use processors.
GatherBounds bounds_for_blocks(int threads, std::size_t count, std::size_t block_bytes,
                               const DevicesInUse& devices, const DeviceOptions& options);

/// What gathering did.
struct GatherFigures {
  std::size_t pinned_bytes = 0;
  std::uint64_t bytes_copied = 0;  ///< from devices
  std::int64_t batches = 0;
  std::size_t peak_device_bytes = 0;  ///< of memory of a device, where it was most
  double seconds = 0;                 ///< of all threads together

  void add(const GatherFigures& other);
};

/// The gatherers of one thread, which come into being as it meets devices.
class DeviceGatherers {
 public:
  DeviceGatherers(const DevicesInUse& devices, const GatherBounds& bounds)
      : devices_(devices), bounds_(bounds) {}

  DeviceGatherer& of(int device);

  /// DeviceGatherer::finish() of all of them; returns what they did.
  GatherFigures finish();

 private:
  const DevicesInUse& devices_;
  const GatherBounds bounds_;
  std::map<int, DeviceGatherer> gatherers_;
};

/// Calls work(index, thread, gatherers) for each index below `count`, on up to bounds.threads threads which
/// are numbered from 0 on and have gatherers of their own, and hands out all that has been gathered. If one
/// throws, the others end soon, and its exception is thrown here. Works without devices as well.
GatherFigures gather_on_threads(
    std::size_t count, const DevicesInUse& devices, const GatherBounds& bounds,
    const std::function<void(std::size_t index, std::size_t thread, DeviceGatherers& gatherers)>& work);

}  // namespace shardwright
