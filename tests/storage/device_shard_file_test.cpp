#include <gtest/gtest.h>

#include "storage/write/shard_file.h"
#include "tests/storage/checkpoint_files.h"
#include "tests/storage/plain_bytes.h"
#include "tests/storage/plain_checksums.h"
#include "tests/storage/random_tensors.h"

namespace shardwright {
namespace {

void expect_file(const ShardFile& file, const std::filesystem::path& path, const RandomTensors& all) {
  const std::string bytes = read_file(path);
  for (std::size_t i = 0; i < all.host.size(); ++i) {
    const StoredBytes& item = file.items()[i];
    const std::string expected = plain_bytes(all.host[i]);
    ASSERT_TRUE(bytes.substr(item.begin, item.end - item.begin) == expected) << "tensor " << i;
    ASSERT_EQ(item.checksums, plain_sums(expected, expected.size())) << "tensor " << i;
  }
}

std::vector<RowsInFile> rows_of(const RandomTensors& all) {
  std::vector<RowsInFile> rows;
  for (std::size_t i = 0; i < all.sizes.size(); ++i)
    rows.push_back({all.names[i], {all.sizes[i], all.sizes[i]}});
  return rows;
}

std::vector<std::size_t> all_items(const RandomTensors& all) {
  std::vector<std::size_t> items(all.tensors.size());
  for (std::size_t i = 0; i < items.size(); ++i) items[i] = i;
  return items;
}

TEST(device_shard_file, holds_the_bytes_of_tensors_of_any_strides_on_any_devices) {
  Random random(1);
  for (std::uint64_t round = 0; round < 40; ++round) {
    FakeDevices devices(round);
    const RandomTensors all(random, devices, round % 10 == 0);
    const TemporaryDirectory folder;
    ShardFile file(folder / "x.bin", rows_of(all), false);
    DeviceOptions options;
    const auto threads = static_cast<int>(random.between(1, 3));
    options.calls = devices.calls();
    options.memory = static_cast<std::size_t>(random.one_of<int>({64 << 10, 70001, 1 << 20, 256 << 20}));
    const GatherFigures report = file.write(all_items(all), all.tensors, threads, options);
    file.finish();
    ASSERT_EQ(devices.faults(), std::vector<std::string>()) << "round " << round;
    expect_file(file, folder / "x.bin", all);
    EXPECT_EQ(devices.peak_pinned_bytes() > 0, report.pinned_bytes > 0);
    EXPECT_LE(devices.peak_pinned_bytes(), report.pinned_bytes);
    EXPECT_LE(report.pinned_bytes, static_cast<std::size_t>(threads) * 3 * (8U << 20));
    EXPECT_LE(devices.peak_device_bytes(), report.peak_device_bytes);
    EXPECT_LE(devices.peak_device_bytes(), options.memory);
    if (testing::Test::HasFailure()) FAIL() << "round " << round;
  }
}

TEST(device_shard_file, a_failure_of_any_call_names_tensor_and_call_and_leaves_nothing_behind) {
  const std::vector<std::pair<std::string, std::string>> calls = {
      {"set_device", "cudaSetDevice"},         {"pinned_allocate", "cudaHostAlloc"},
      {"device_allocate", "cudaMalloc"},       {"stream_create", "cudaStreamCreate"},
      {"event_record", "cudaEventRecord"},     {"event_synchronize", "cudaEventSynchronize"},
      {"copy_from_device", "cudaMemcpyAsync"}, {"place", "launching a kernel"},
  };
  for (const auto& [call, text] : calls) {
    int failures = 0;
    for (std::uint64_t seed = 1; seed <= 20; ++seed) {
      Random random(seed);
      FakeDevices devices(seed);
      const RandomTensors all(random, devices, false);
      devices.fail(call, static_cast<int>(random.between(1, 4)), 999);
      const TemporaryDirectory folder;
      ShardFile file(folder / "x.bin", rows_of(all), false);
      DeviceOptions options;
      options.calls = devices.calls();
      options.memory = 64 << 10;
      bool failed = false;
      try {
        file.write(all_items(all), all.tensors, 2, options);
      } catch (const Error& error) {
        failed = true;
        EXPECT_EQ(static_cast<int>(error.kind), static_cast<int>(ErrorKind::device)) << error.what();
        EXPECT_TRUE(std::string(error.what()).starts_with("tensor ")) << error.what();
        EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
      }
      EXPECT_EQ(devices.faults(), std::vector<std::string>());
      EXPECT_EQ(devices.has_failed(), failed);
      failures += static_cast<int>(failed);
    }
    EXPECT_GT(failures, 3) << call;
  }
}

}  // namespace
}  // namespace shardwright
