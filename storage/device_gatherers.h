#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

#include "storage/device_gatherer.h"
#include "storage/devices_in_use.h"

namespace shardwright {

/// What threads that gather take, each for each device.
struct GatherBounds {
  int threads = 1;
  std::size_t batch_bytes = 0;  ///< see DeviceGatherer
  std::size_t block_bytes = 0;
};

/// For up to so many threads, with so much pinned memory in all, and memory of each device. Where that is too
/// little for batches that are worth it, fewer threads have to do.
GatherBounds gather_bounds(int threads, std::size_t pinned_bytes, std::size_t devices,
                           std::size_t device_memory);

/// What gathering did.
struct GatherFigures {
  std::size_t pinned_bytes = 0;
  std::uint64_t bytes_copied = 0;  ///< from devices
  std::int64_t batches = 0;

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

}  // namespace shardwright
