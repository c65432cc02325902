#include "storage/device/copy_out.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "storage/device/gather_on_device.h"

namespace shardwright {
namespace {

/// What is copied at a time.
constexpr std::uint64_t block_bytes = std::uint64_t{4} << 20;

struct Block {
  const CopyOut* copy;
  std::uint64_t begin;
  std::uint64_t bytes;
};

}  // namespace

GatherFigures copy_out(std::span<const CopyOut> copies, int threads, const DeviceOptions& options) {
  std::vector<Block> blocks;
  std::vector<TensorOnDevice> on_devices;
  for (const CopyOut& copy : copies) {
    const TensorInMemory& tensor = copy.tensor;
    const std::uint64_t bytes = static_cast<std::uint64_t>(volume(tensor.shape)) * tensor.element_bytes;
    for (std::uint64_t begin = 0; begin < bytes; begin += block_bytes)
      blocks.push_back({&copy, begin, std::min(block_bytes, bytes - begin)});
    if (bytes > 0) on_devices.push_back({copy.name, tensor.cuda_device});
  }
  DevicesInUse devices(on_devices, options);
  const GatherBounds bounds = bounds_for_blocks(threads, blocks.size(), block_bytes, devices, options);
  GatherFigures figures;
  devices.run([&] {
    figures = gather_on_threads(
        blocks.size(), devices, bounds,
        [&](std::size_t index, std::size_t /*thread*/, DeviceGatherers& gatherers) {
          const auto& [copy, begin, bytes] = blocks[index];
          DeviceGatherer& gatherer = gatherers.of(copy->tensor.cuda_device);
          gatherer.begin(bytes, copy->name, [to = copy->to + begin, count = bytes](const std::byte* found) {
            std::memcpy(to, found, count);
          });
          gather(copy->tensor, begin, bytes, gatherer);
        });
  });
  return figures;
}

}  // namespace shardwright
