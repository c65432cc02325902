#include "storage/write/export.h"

#include <deque>

#include "device_memory.h"
#include "tests/storage/random_export.h"

namespace shardwright::cuda {
namespace {

/// Work on a stream that writes these bytes late: the export must come after it.
void write_later(const DeviceMemory& memory, const std::vector<std::uint8_t>& bytes, cudaStream_t stream) {
  void* const there = memory.address(bytes.data());
  for (int i = 0; i < 50; ++i) expect_success(cudaMemsetAsync(there, i, bytes.size(), stream));
  expect_success(cudaMemcpyAsync(there, bytes.data(), bytes.size(), cudaMemcpyHostToDevice, stream));
}

TEST(CudaDeviceExport, FilesOfTensorsOnTheDeviceHoldWhatTheDefinitionSays) {
  shardwright::Random random(1);
  cudaStream_t stream = nullptr;
  expect_success(cudaStreamCreate(&stream));
  for (int round = 0; round < 40; ++round) {
    const RandomExport state(random, random.once_in(6) ? 200 : 70);
    const TemporaryDirectory folder;
    ExportWriting writing;
    writing.threads = static_cast<int>(random.between(1, 4));
    writing.staging_bytes = static_cast<std::size_t>(random.one_of<int>({0, 64 << 10, 1 << 20}));
    writing.devices.memory = static_cast<std::size_t>(random.one_of<int>({64 << 10, 200000, 256 << 20}));
    const cudaStream_t after = random.once_in(2) ? stream : nullptr;
    writing.devices.streams[0] = after;
    std::vector<std::vector<TensorSpec>> ranks;
    std::deque<DeviceMemory> on_device;
    for (const RankTensors& rank : state.ranks) {
      ranks.push_back(rank.specs);
      for (std::size_t n = 0; n < rank.specs.size(); ++n) {
        if (random.once_in(4)) continue;
        TensorSpec& spec = ranks.back()[n];
        const DeviceMemory& memory = on_device.emplace_back(rank.memory[n].bytes);
        write_later(memory, rank.memory[n].bytes, after);
        spec.data = memory.address(spec.data);
        spec.device = DeviceKind::cuda;
      }
    }
    ExportLayout layout;
    const std::vector<ExportReport> reports =
        run_on_all_ranks(ranks, state.request, folder / "to", writing, &layout);
    expect_files(folder / "to", layout, state.expected());
    for (const ExportReport& report : reports) EXPECT_LE(report.peak_device_bytes, writing.devices.memory);
    if (testing::Test::HasFailure()) FAIL() << "round " << round;
  }
  expect_success(cudaStreamDestroy(stream));
}

}  // namespace
}  // namespace shardwright::cuda
