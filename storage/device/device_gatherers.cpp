#include "storage/device/device_gatherers.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "storage/seconds.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

/// A smaller batch costs more to begin and wait for than to copy.
constexpr std::size_t smallest_batch = std::size_t{16} << 10;

/// A larger one gains nothing.
constexpr std::size_t largest_batch = std::size_t{16} << 20;

}  // namespace

GatherBounds gather_bounds(int threads, std::size_t pinned_bytes, std::size_t devices,
                           std::size_t device_memory) {
  if (devices == 0) return {threads, 0, 0};
  const std::size_t batches = DeviceGatherer::batch_count * devices;
  const std::size_t most = std::min(pinned_bytes / batches, device_memory / DeviceGatherer::batch_count);
  const std::size_t used =
      std::clamp<std::size_t>(most / smallest_batch, 1, static_cast<std::size_t>(std::max(1, threads)));
  const auto of_64 = [](std::size_t bytes) { return bytes / 64 * 64; };
  const std::size_t batch_bytes = of_64(std::min(largest_batch, pinned_bytes / batches / used));
  return {static_cast<int>(used), batch_bytes,
          std::min(batch_bytes, of_64(device_memory / DeviceGatherer::batch_count / used))};
}

GatherBounds bounds_for_blocks(int threads, std::size_t count, std::size_t block_bytes,
                               const DevicesInUse& devices, const DeviceOptions& options) {
  const std::size_t wanted = static_cast<std::size_t>(threads > 0 ? threads : processors());
  const std::size_t used = std::max<std::size_t>(1, std::min(wanted, count));
  const std::size_t pinned = used * devices.count() * DeviceGatherer::batch_count * block_bytes;
  return gather_bounds(static_cast<int>(used), pinned, devices.count(), options.memory);
}

void GatherFigures::add(const GatherFigures& other) {
  pinned_bytes += other.pinned_bytes;
  bytes_copied += other.bytes_copied;
  batches += other.batches;
  peak_device_bytes = std::max(peak_device_bytes, other.peak_device_bytes);
  seconds += other.seconds;
}

DeviceGatherer& DeviceGatherers::of(int device) {
  return gatherers_.try_emplace(device, devices_.at(device), bounds_.batch_bytes, bounds_.block_bytes)
      .first->second;
}

GatherFigures DeviceGatherers::finish() {
  GatherFigures figures;
  for (auto& [_, gatherer] : gatherers_) {
    const std::size_t pinned = gatherer.finish();
    figures.add({pinned, gatherer.bytes_copied(), gatherer.batches(), 0, 0});
  }
  return figures;
}

GatherFigures gather_on_threads(
    std::size_t count, const DevicesInUse& devices, const GatherBounds& bounds,
    const std::function<void(std::size_t index, std::size_t thread, DeviceGatherers& gatherers)>& work) {
  std::vector<GatherFigures> done(std::min(static_cast<std::size_t>(std::max(1, bounds.threads)), count));
  std::atomic<std::size_t> next = 0;
  std::atomic<bool> failed = false;
  for_each_index(done.size(), bounds.threads, [&](std::size_t thread) {
    try {
      const Clock::time_point begin = Clock::now();
      DeviceGatherers gatherers(devices, bounds);
      for (std::size_t index = next++; index < count && !failed; index = next++)
        work(index, thread, gatherers);
      if (!failed) done[thread] = gatherers.finish();
      done[thread].seconds = seconds_since(begin);
    } catch (...) {
      failed = true;
      throw;
    }
  });
  GatherFigures figures;
  for (const GatherFigures& of_thread : done) figures.add(of_thread);
  figures.peak_device_bytes = devices.peak_bytes();
  return figures;
}

}  // namespace shardwright
