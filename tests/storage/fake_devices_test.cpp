#include "tests/storage/fake_devices.h"

#include <gtest/gtest.h>

#include <cstring>

namespace shardwright {
namespace {

/// Pinned memory, memory on device 1, a stream and an event there, on a thread of its own as the engine has
/// them. What breaks a rule must be seen whatever the moment at which the fake does the work.
struct Bench {
  FakeDevices devices;
  const DeviceCalls& calls = *devices.calls();
  std::byte* pinned = nullptr;
  std::byte* staging = nullptr;
  std::byte* tensor;
  DeviceStream stream = nullptr;
  DeviceEvent event = nullptr;

  explicit Bench(std::uint64_t seed) : devices(seed), tensor(devices.tensor_memory(1, 100)) {}

  void begin() {
    calls.set_device(1);
    calls.pinned_allocate(reinterpret_cast<void**>(&pinned), 100);
    calls.device_allocate(reinterpret_cast<void**>(&staging), 100);
    calls.stream_create(&stream);
    calls.event_create(&event);
    std::memset(pinned, 7, 100);
  }
  void end() {
    calls.stream_synchronize(stream);
    calls.event_destroy(event);
    calls.stream_destroy(stream);
    calls.pinned_free(pinned);
    calls.device_free(staging);
  }
  void copy() const { calls.copy_to_device(staging, pinned, 100, stream); }
  void place(DeviceStream on) const {
    const cuda::Placing placing{{staging, DType::U8, 1, 100, 100}, {}, {tensor, DType::U8, 100, 1}};
    calls.place({&placing, 1}, on);
  }
};

std::vector<std::string> faults_of(std::uint64_t seed, const std::function<void(Bench&)>& work) {
  Bench bench(seed);
  std::thread([&] {
    bench.begin();
    work(bench);
  }).join();
  return bench.devices.faults();
}

void expect_fault(const std::string& fault, const std::function<void(Bench&)>& work) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<std::string> found = faults_of(seed, work);
    EXPECT_NE(std::find(found.begin(), found.end(), fault), found.end()) << fault << ", seed " << seed;
  }
}

TEST(fake_devices, work_in_order_is_done_and_no_fault) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Bench bench(seed);
    std::thread([&] {
      bench.begin();
      bench.copy();
      bench.calls.event_record(bench.event, bench.stream);
      bench.place(bench.stream);
      bench.calls.event_synchronize(bench.event);
      std::memset(bench.pinned, 8, 100);
      bench.end();
    }).join();
    EXPECT_EQ(bench.devices.faults(), std::vector<std::string>());
    bench.devices.open_memory();
    for (int i = 0; i < 100; ++i) EXPECT_EQ(bench.tensor[i], std::byte{7});
  }
}

TEST(fake_devices, what_is_left_behind_is_a_fault) {
  expect_fault("a stream is left behind", [](Bench&) {});
  expect_fault("events are left behind", [](Bench&) {});
  expect_fault("pinned memory is left behind", [](Bench&) {});
  expect_fault("device memory is left behind", [](Bench&) {});
}

TEST(fake_devices, memory_that_is_freed_too_early_is_a_fault) {
  expect_fault("pinned_free of memory that an operation may still use", [](Bench& bench) {
    bench.copy();
    bench.calls.pinned_free(bench.pinned);
  });
  expect_fault("device_free of memory that an operation may still use", [](Bench& bench) {
    bench.copy();
    bench.calls.device_free(bench.staging);
  });
  expect_fault("a stream is destroyed that may have work left in it", [](Bench& bench) {
    bench.copy();
    bench.calls.stream_destroy(bench.stream);
  });
}

TEST(fake_devices, staging_that_is_used_again_too_early_is_a_fault) {
  expect_fault("staging is used again before what uses it is done", [](Bench& bench) {
    DeviceStream other = nullptr;
    bench.calls.stream_create(&other);
    bench.copy();
    bench.place(other);
  });
  int seen = 0;  // only if the copy is done after the change, which is up to the fake
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<std::string> found = faults_of(seed, [](Bench& bench) {
      bench.copy();
      std::memset(bench.pinned, 8, 100);
      bench.end();
    });
    const std::string fault = "pinned memory was changed before its copy was done";
    seen += static_cast<int>(std::find(found.begin(), found.end(), fault) != found.end());
  }
  EXPECT_GT(seen, 5);
}

TEST(fake_devices, an_event_orders_streams) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    const std::vector<std::string> found = faults_of(seed, [](Bench& bench) {
      DeviceStream other = nullptr;
      bench.calls.stream_create(&other);
      bench.copy();
      bench.calls.event_record(bench.event, bench.stream);
      bench.calls.stream_wait_event(other, bench.event);
      bench.place(other);
      bench.calls.stream_synchronize(other);
      bench.calls.stream_destroy(other);
      bench.end();
    });
    EXPECT_EQ(found, std::vector<std::string>());
  }
}

TEST(fake_devices, what_happens_on_the_wrong_device_or_thread_is_a_fault) {
  expect_fault("a launch while another device is current", [](Bench& bench) {
    bench.calls.set_device(2);
    bench.place(bench.stream);
  });
  expect_fault("set_device on a device that holds no tensor",
               [](Bench& bench) { bench.calls.set_device(0); });
  FakeDevices devices(1);
  devices.tensor_memory(0, 1);
  devices.calls()->set_device(0);
  EXPECT_EQ(devices.faults(), std::vector<std::string>{"set_device on the caller's thread"});
}

TEST(fake_devices, a_tensor_is_not_to_be_used_before_the_trainers_stream_is_done) {
  expect_fault("a tensor is used before the trainer's stream is done with it", [](Bench& bench) {
    bench.devices.stream_that_fills(1, bench.tensor, 100, 1);
    bench.copy();
    bench.place(bench.stream);
  });
}

TEST(fake_devices, after_a_failed_operation_every_call_fails) {
  Bench bench(1);
  bench.devices.fail_operation(1);
  std::thread([&] {
    bench.begin();
    bench.copy();
    EXPECT_NE(bench.calls.stream_synchronize(bench.stream), 0);
    EXPECT_NE(bench.calls.event_record(bench.event, bench.stream), 0);
    bench.end();
  }).join();
  EXPECT_EQ(bench.devices.faults(), std::vector<std::string>());
}

}  // namespace
}  // namespace shardwright
