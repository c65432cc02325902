#include <gtest/gtest.h>

#include "tests/storage/device_destinations.h"
#include "tests/storage/ways_to_read.h"

namespace shardwright {
namespace {

void choose_options(Random& random, LoadOptions& options) {
  options.threads = static_cast<int>(random.between(1, 4));
  options.staging_bytes = static_cast<std::size_t>(random.one_of<int>({0, 4096, 20000, 100000, 1 << 20}));
  options.devices.memory = static_cast<std::size_t>(random.one_of<int>({64 << 10, 70001, 200000, 256 << 20}));
  choose_reads(random, options);
}

/// A load, and what it leaves in CPU memory.
struct Job {
  RandomModel model;
  Checkpoint checkpoint;
  Destinations host;
  LoadPlan plan;
  std::vector<Bytes> expected;
  DeviceDestinations destinations;

  Job(Random& random, std::uint64_t seed)
      : model(random_model(random, random.once_in(8) ? 300 : 70)),
        checkpoint(random, model.stored),
        host(random, model),
        plan(host.plan(checkpoint)),
        expected(loaded()),
        destinations(seed, random, host, 3) {}

 private:
  std::vector<Bytes> loaded() {
    load(plan, checkpoint.catalog, host.specs);
    std::vector<Bytes> bytes = host_bytes(host);
    clear(host);
    return bytes;
  }
};

TEST(device_load, tensors_on_any_devices_are_bit_for_bit_what_they_are_on_the_cpu) {
  Random random(1);
  for (std::uint64_t round = 0; round < 80; ++round) {
    Job job(random, round);
    Destinations& host = job.host;
    const LoadPlan& plan = job.plan;
    DeviceDestinations& destinations = job.destinations;
    choose_options(random, destinations.options);
    const LoadReport report = load(plan, job.checkpoint.catalog, destinations.specs, destinations.options);
    ASSERT_EQ(destinations.devices.faults(), std::vector<std::string>()) << "round " << round;
    destinations.collect();
    ASSERT_EQ(host_bytes(host), job.expected) << "round " << round;

    const LoadOptions& options = destinations.options;
    EXPECT_EQ(report.bytes_written, plan.bytes_written);
    EXPECT_TRUE(options.staging_bytes == 0 || report.peak_staging_bytes <= options.staging_bytes);
    EXPECT_LE(destinations.devices.peak_pinned_bytes(), report.peak_staging_bytes);
    const std::size_t most = destinations.devices.peak_device_bytes();
    EXPECT_EQ(report.peak_device_bytes, most);
    EXPECT_LE(most, options.devices.memory);
  }
}

TEST(device_load, files_that_are_not_in_the_page_cache_are_read_straight_into_devices) {
  Random random(3);
  std::uint64_t read = 0;
  for (std::uint64_t round = 0; round < 120; ++round) {
    Job job(random, round);
    Destinations& host = job.host;
    const LoadPlan& plan = job.plan;
    DeviceDestinations& destinations = job.destinations;
    FakeDevices& devices = destinations.devices;
    choose_options(random, destinations.options);
    destinations.options.direct_io = DirectIo::always;
    destinations.options.devices.gpu_direct_calls = devices.gpu_direct_calls();
    destinations.options.devices.memory =
        static_cast<std::size_t>(random.one_of<int>({300 << 10, 2 << 20, 256 << 20}));
    devices.gpu_direct_refuses_one_in = random.one_of<int>({0, 0, 3, 30});
    const LoadReport report = load(plan, job.checkpoint.catalog, destinations.specs, destinations.options);
    ASSERT_EQ(devices.faults(), std::vector<std::string>()) << "round " << round;
    EXPECT_EQ(report.bytes_gpu_direct, devices.gpu_direct_bytes());
    destinations.collect();
    ASSERT_EQ(host_bytes(host), job.expected) << "round " << round;
    const std::size_t most = devices.peak_device_bytes();
    // Memory that is refused is there for a moment all the same.
    EXPECT_TRUE(most <= report.peak_device_bytes || devices.gpu_direct_refuses_one_in > 0);
    EXPECT_LE(most, destinations.options.devices.memory);
    read += report.bytes_gpu_direct;
  }
  EXPECT_GT(read, 0u);
}

TEST(device_load, a_load_into_cpu_memory_makes_no_call) {
  Random random(2);
  const RandomModel model = random_model(random, 70);
  const Checkpoint checkpoint(random, model.stored);
  const Destinations host(random, model);
  const FakeDevices devices(1);
  LoadOptions options;
  options.devices.calls = devices.calls();
  const LoadReport report = load(host.plan(checkpoint), checkpoint.catalog, host.specs, options);
  EXPECT_EQ(devices.count("device_count"), 0);
  EXPECT_EQ(devices.count("pinned_allocate"), 0);
  EXPECT_EQ(report.devices, 0);
}

}  // namespace
}  // namespace shardwright
