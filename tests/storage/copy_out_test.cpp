#include "storage/device/copy_out.h"

#include <gtest/gtest.h>

#include "planner/error.h"
#include "tests/storage/plain_bytes.h"
#include "tests/storage/random_tensors.h"

namespace shardwright {
namespace {

/// Copies of those tensors that are on devices.
struct Copies {
  std::vector<std::string> found;
  std::vector<std::string> expected;
  std::vector<CopyOut> copies;

  explicit Copies(const RandomTensors& all) : found(all.tensors.size()) {
    for (std::size_t i = 0; i < all.tensors.size(); ++i) {
      if (all.tensors[i].cuda_device < 0) continue;
      expected.push_back(plain_bytes(all.host[i]));
      std::string& to = found[copies.size()];
      to.assign(expected.back().size(), '?');
      copies.push_back({all.names[i], all.tensors[i], reinterpret_cast<std::byte*>(to.data())});
    }
    found.resize(copies.size());
  }
};

TEST(copy_out, tensors_of_any_strides_on_any_devices_come_as_they_are) {
  Random random(1);
  for (std::uint64_t round = 0; round < 40; ++round) {
    FakeDevices devices(round);
    const RandomTensors all(random, devices, round % 20 == 0);
    Copies copies(all);
    DeviceOptions options;
    options.calls = devices.calls();
    options.memory = static_cast<std::size_t>(random.one_of<int>({64 << 10, 70001, 256 << 20}));
    const GatherFigures figures = copy_out(copies.copies, static_cast<int>(random.between(1, 3)), options);
    ASSERT_EQ(devices.faults(), std::vector<std::string>()) << "round " << round;
    ASSERT_TRUE(copies.found == copies.expected) << "round " << round;
    EXPECT_LE(figures.peak_device_bytes, options.memory);
    EXPECT_LE(devices.peak_pinned_bytes(), figures.pinned_bytes);
  }
}

TEST(copy_out, a_failure_names_the_tensor_and_leaves_nothing_behind) {
  int failures = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Random random(seed);
    FakeDevices devices(seed);
    const RandomTensors all(random, devices, false);
    Copies copies(all);
    DeviceOptions options;
    options.calls = devices.calls();
    devices.fail_operation(static_cast<int>(random.between(1, 3)));
    try {
      copy_out(copies.copies, 2, options);
    } catch (const Error& error) {
      ++failures;
      EXPECT_TRUE(std::string(error.what()).starts_with("tensor ")) << error.what();
    }
    EXPECT_EQ(devices.faults(), std::vector<std::string>());
  }
  EXPECT_GT(failures, 5);
}

}  // namespace
}  // namespace shardwright
