#include "storage/load/load.h"

#include <deque>

#include "device_memory.h"
#include "tests/storage/decoded_checkpoint.h"

namespace shardwright::cuda {
namespace {

/// Work on a stream that writes the same bytes late: the load must come after it.
void fill_later(const DeviceMemory& memory, const std::vector<std::uint8_t>& bytes, cudaStream_t stream) {
  for (int i = 0; i < 50; ++i) {
    expect_success(cudaMemsetAsync(memory.address(bytes.data()), i, bytes.size(), stream));
  }
  expect_success(cudaMemsetAsync(memory.address(bytes.data()), Memory::untouched, bytes.size(), stream));
}

TEST(CudaDeviceLoad, TensorsOnTheDeviceAreBitForBitWhatTheyAreOnTheCpuAndNothingElseIsTouched) {
  shardwright::Random random(1);
  cudaStream_t stream = nullptr;
  expect_success(cudaStreamCreate(&stream));
  for (int round = 0; round < 60; ++round) {
    const RandomModel model = random_model(random, random.once_in(8) ? 300 : 70);
    const Checkpoint checkpoint(random, model.stored);
    Destinations host(random, model);
    const LoadPlan plan = host.plan(checkpoint);

    LoadOptions options;
    options.threads = static_cast<int>(random.between(1, 4));
    options.staging_bytes = static_cast<std::size_t>(random.one_of<int>({0, 4096, 20000, 1 << 20}));
    options.devices.memory = static_cast<std::size_t>(random.one_of<int>({64 << 10, 200000, 256 << 20}));
    const cudaStream_t after = random.once_in(2) ? stream : nullptr;
    options.devices.streams[0] = after;
    std::vector<TensorSpec> specs = host.specs;
    std::deque<DeviceMemory> on_device;
    std::vector<std::size_t> moved;
    for (std::size_t n = 0; n < specs.size(); ++n) {
      if (random.once_in(4)) continue;
      moved.push_back(n);
      const DeviceMemory& memory = on_device.emplace_back(host.memory[n].bytes);
      fill_later(memory, host.memory[n].bytes, after);
      specs[n].data = memory.address(specs[n].data);
      specs[n].device = DeviceKind::cuda;
    }
    const LoadReport report = load(plan, checkpoint.catalog, specs, options);
    EXPECT_LE(report.peak_device_bytes, options.devices.memory);

    std::vector<Bytes> found;
    for (const DeviceMemory& memory : on_device) found.push_back(memory.bytes());
    for (std::size_t n = 0; n < specs.size(); ++n) {
      std::fill(host.memory[n].bytes.begin(), host.memory[n].bytes.end(), Memory::untouched);
    }
    load(plan, checkpoint.catalog, host.specs);
    for (std::size_t i = 0; i < moved.size(); ++i) {
      ASSERT_TRUE(found[i] == host.memory[moved[i]].bytes) << specs[moved[i]].fqn << ", round " << round;
    }
  }
  expect_success(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace shardwright::cuda
