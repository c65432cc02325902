#include <gtest/gtest.h>

#include "tests/planner/rounds.h"
#include "tests/storage/random_export.h"

namespace shardwright {
namespace {

void choose(Random& random, ExportWriting& writing) {
  writing.threads = static_cast<int>(random.between(1, 4));
  writing.staging_bytes = static_cast<std::size_t>(random.one_of<int>({0, 64 << 10, 100000, 1 << 20}));
  writing.devices.memory = static_cast<std::size_t>(random.one_of<int>({64 << 10, 70001, 200000, 256 << 20}));
}

std::vector<std::vector<TensorSpec>> host_specs(const RandomExport& state) {
  std::vector<std::vector<TensorSpec>> specs;
  for (const RankTensors& rank : state.ranks) specs.push_back(rank.specs);
  return specs;
}

TEST(exports, files_hold_what_the_definition_says_of_any_state_of_any_ranks) {
  Random random(1);
  for (int round = 0; round < rounds(40); ++round) {
    const RandomExport state(random, random.once_in(6) ? 200 : 70);
    const TemporaryDirectory folder;
    ExportWriting writing;
    choose(random, writing);
    ExportLayout layout;
    run_on_all_ranks(host_specs(state), state.request, folder / "to", writing, &layout);
    expect_files(folder / "to", layout, state.expected());
    if (testing::Test::HasFailure()) FAIL() << "round " << round;
  }
}

TEST(device_export, files_of_tensors_on_any_devices_hold_what_the_definition_says) {
  Random random(2);
  for (std::uint64_t round = 0; round < 60; ++round) {
    const RandomExport state(random, random.once_in(6) ? 200 : 70);
    const TemporaryDirectory folder;
    FakeDevices devices(round);
    ExportWriting writing;
    choose(random, writing);
    DeviceSources sources(devices, random, state, 3, writing.devices);
    ExportLayout layout;
    const std::vector<ExportReport> reports =
        run_on_all_ranks(sources.specs, state.request, folder / "to", writing, &layout);
    ASSERT_EQ(devices.faults(), std::vector<std::string>()) << "round " << round;
    sources.expect_unchanged();
    expect_files(folder / "to", layout, state.expected());

    run_on_all_ranks(host_specs(state), state.request, folder / "of the host", writing);
    for (const SourceFile& file : layout.catalog.files)
      EXPECT_TRUE(read_file(folder.path / "to" / file.name) ==
                  read_file(folder.path / "of the host" / file.name));

    std::uint64_t written = 0;
    std::size_t staging = 0;
    std::size_t of_device = 0;
    for (const ExportReport& report : reports) {
      EXPECT_TRUE(writing.staging_bytes == 0 || report.peak_staging_bytes <= writing.staging_bytes);
      written += report.bytes_written;
      EXPECT_LE(report.peak_device_bytes, writing.devices.memory);
      staging = std::max(staging, report.peak_staging_bytes);
      of_device = std::max(of_device, report.peak_device_bytes);
    }
    std::uint64_t size = 0;
    for (const SourceFile& file : layout.catalog.files)
      size += std::filesystem::file_size(folder.path / "to" / file.name);
    EXPECT_EQ(written, size);
    constexpr std::size_t for_scales = std::size_t{512} << 10;
    EXPECT_LE(devices.peak_pinned_bytes(), std::max(staging, for_scales));
    EXPECT_LE(devices.peak_device_bytes(), writing.devices.memory);
    EXPECT_LE(devices.peak_device_bytes(), std::max(of_device, for_scales));
    if (testing::Test::HasFailure()) FAIL() << "round " << round;
  }
}

TEST(device_export, by_any_rule_files_of_tensors_on_devices_are_those_of_cpu_memory) {
  Random random(4);
  int compared = 0;
  for (std::uint64_t round = 0; round < 60; ++round) {
    RandomExport state(random, random.once_in(6) ? 200 : 70);
    state.request.quantize = quantization_named(random.one_of<std::string_view>(
        {"block_fp8", "mxfp4-ocp", "nvfp4-modelopt", "nvfp4-compressed-tensors"}));
    const TemporaryDirectory folder;
    ExportLayout layout;
    try {
      run_on_all_ranks(host_specs(state), state.request, folder / "of the host", {}, &layout);
    } catch (const Error&) {
      continue;  // rows of an odd length, values that are not finite
    }
    FakeDevices devices(round);
    ExportWriting writing;
    DeviceSources sources(devices, random, state, 3, writing.devices);
    run_on_all_ranks(sources.specs, state.request, folder / "to", writing);
    ASSERT_EQ(devices.faults(), std::vector<std::string>()) << "round " << round;
    sources.expect_unchanged();
    for (const SourceFile& file : layout.catalog.files)
      EXPECT_TRUE(read_file(folder.path / "to" / file.name) ==
                  read_file(folder.path / "of the host" / file.name))
          << "round " << round << " " << state.request.quantize->name;
    ++compared;
  }
  EXPECT_GE(compared, 8);
}

TEST(device_export, of_cpu_memory_makes_no_call) {
  Random random(3);
  const RandomExport state(random, 70);
  const TemporaryDirectory folder;
  const FakeDevices devices(1);
  ExportWriting writing;
  writing.devices.calls = devices.calls();
  const std::vector<ExportReport> reports =
      run_on_all_ranks(host_specs(state), state.request, folder / "to", writing);
  EXPECT_EQ(devices.count("device_count"), 0);
  EXPECT_EQ(devices.count("pinned_allocate"), 0);
  EXPECT_EQ(reports.front().devices, 0);
}

}  // namespace
}  // namespace shardwright
