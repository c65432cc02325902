#include "storage/device_gatherers.h"

#include <algorithm>

namespace shardwright {
namespace {

/// A smaller batch costs more to begin and wait for than to copy.
constexpr std::size_t smallest_batch = std::size_t{16} << 10;

/// A larger one gains nothing.
constexpr std::size_t largest_batch = std::size_t{16} << 20;

}  // namespace

GatherBounds gather_bounds(int threads, std::size_t pinned_bytes, std::size_t devices,
                           std::size_t device_memory) {
  const std::size_t batches = DeviceGatherer::batch_count * std::max<std::size_t>(1, devices);
  const std::size_t most = std::min(pinned_bytes / batches, device_memory / DeviceGatherer::batch_count);
  const std::size_t used =
      std::clamp<std::size_t>(most / smallest_batch, 1, static_cast<std::size_t>(std::max(1, threads)));
  const auto of_64 = [](std::size_t bytes) { return bytes / 64 * 64; };
  const std::size_t batch_bytes = of_64(std::min(largest_batch, pinned_bytes / batches / used));
  return {static_cast<int>(used), batch_bytes,
          std::min(batch_bytes, of_64(device_memory / DeviceGatherer::batch_count / used))};
}

void GatherFigures::add(const GatherFigures& other) {
  pinned_bytes += other.pinned_bytes;
  bytes_copied += other.bytes_copied;
  batches += other.batches;
}

DeviceGatherer& DeviceGatherers::of(int device) {
  return gatherers_.try_emplace(device, devices_.at(device), bounds_.batch_bytes, bounds_.block_bytes)
      .first->second;
}

GatherFigures DeviceGatherers::finish() {
  GatherFigures figures;
  for (auto& [_, gatherer] : gatherers_) {
    const std::size_t pinned = gatherer.finish();
    figures.add({pinned, gatherer.bytes_copied(), gatherer.batches()});
  }
  return figures;
}

}  // namespace shardwright
