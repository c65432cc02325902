#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <memory>
#include <mutex>
#include <thread>

#include "planner/error.h"
#include "storage/files/input_file.h"
#include "storage/files/remote_calls.h"
#include "storage/load/load.h"
#include "tests/storage/decoded_checkpoint.h"
#include "tests/storage/device_destinations.h"

namespace shardwright {
namespace {

constexpr std::string_view scheme = "objects://";

/// Files of this machine as objects, at objects:// and their path.
struct Objects {
  std::mutex mutex;
  std::uint64_t bytes_asked = 0;
  std::int64_t requests = 0;
  std::atomic<bool> fails = false;
  std::atomic<std::int64_t> given_up = 0;

  static std::string path_of(const std::string& address) { return address.substr(scheme.size()); }

  /// At addresses that are aligned and at such that are not, as other libraries' may be.
  ArrivedBytes read(const std::string& address, const std::string& version, std::uint64_t offset,
                    std::size_t count, const std::atomic<bool>& stopped) {
    std::size_t shift = 0;
    if (version != "first") throw Error(ErrorKind::io, address + ": another version was asked for");
    {
      const std::lock_guard lock(mutex);
      bytes_asked += count;
      shift = static_cast<std::size_t>(++requests % 4);
    }
    if (fails.exchange(false)) throw Error(ErrorKind::io, address + ": the store is gone", EIO);
    if (offset % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
    if (stopped) {
      ++given_up;
      return nullptr;
    }
    const InputFile file(path_of(address));
    const auto memory = std::make_shared<std::byte[]>(shift + count);
    file.read(offset, reinterpret_cast<char*>(memory.get() + shift), count);
    return {memory, memory.get() + shift};
  }
};

/// One for the process.
Objects& objects() {
  static Objects* const all = new Objects;
  return *all;
}

/// Other tests of this process set others.
void reach_objects() {
  set_remote_calls({[](const std::string&) { return std::vector<RemoteObject>{}; },
                    [](const std::string& address) {
                      return RemoteObject{"", size_of_file(Objects::path_of(address)), "first", false};
                    },
                    [](const std::string& address, const std::string& version, std::uint64_t offset,
                       std::size_t count, const std::atomic<bool>& stopped) {
                      return objects().read(address, version, offset, count, stopped);
                    }});
}

Catalog at_an_address(Catalog catalog) {
  reach_objects();
  catalog.directory = std::string(scheme) + catalog.directory.string();
  for (SourceFile& file : catalog.files) {
    file.size = size_of_file(Objects::path_of((catalog.directory / file.name).string()));
    file.version = "first";
  }
  return catalog;
}

TEST(remote_objects, a_load_from_them_is_what_plain_decoding_gives) {
  Random random(11);
  for (int round = 0; round < 40; ++round) {
    const RandomModel model = random_model(random, random.once_in(8) ? 300 : 70);
    const Checkpoint checkpoint(random, model.stored);
    const Destinations destinations(random, model);
    const LoadPlan plan = destinations.plan(checkpoint);
    const Catalog catalog = at_an_address(checkpoint.catalog);
    LoadOptions options;
    options.threads = static_cast<int>(random.between(1, 4));
    options.staging_bytes =
        static_cast<std::size_t>(random.one_of<int>({0, 4096, 9000, 100000, 1 << 20, 70 << 20}));
    objects().bytes_asked = 0;
    objects().requests = 0;
    const LoadReport report = load(plan, catalog, destinations.specs, options);
    ASSERT_NO_FATAL_FAILURE(destinations.expect_decoded(checkpoint)) << "round " << round;
    EXPECT_EQ(report.bytes_read, objects().bytes_asked);
    EXPECT_EQ(static_cast<std::int64_t>(report.read_requests), objects().requests);
    EXPECT_EQ(report.files_remote, report.files);
    EXPECT_EQ(report.files_io_uring, 0);
    EXPECT_TRUE(options.staging_bytes == 0 || report.peak_staging_bytes <= options.staging_bytes);
  }
}

/// Writers that sort by dtype put F32 scales before FP8 weights: in a request for several tasks they lie
/// there.
TEST(remote_objects, devices_take_scales_that_lie_before_weights_or_behind_them) {
  Random random(1);
  for (std::uint64_t round = 0; round < 60; ++round) {
    RandomModel model = random_model(random, random.once_in(8) ? 300 : 70);
    if (round % 2 == 0) std::reverse(model.stored.begin(), model.stored.end());
    const Checkpoint checkpoint(random, model.stored);
    Destinations host(random, model);
    const LoadPlan plan = host.plan(checkpoint);
    load(plan, checkpoint.catalog, host.specs);
    const std::vector<Bytes> expected = host_bytes(host);
    clear(host);
    DeviceDestinations destinations(round, random, host, 3);
    destinations.options.threads = 1;
    load(plan, at_an_address(checkpoint.catalog), destinations.specs, destinations.options);
    ASSERT_EQ(destinations.devices.faults(), std::vector<std::string>()) << "round " << round;
    destinations.collect();
    ASSERT_EQ(host_bytes(host), expected) << "round " << round;
  }
}

TEST(remote_objects, a_failure_names_object_and_tensor_and_ends_the_load) {
  Random random(12);
  for (int round = 0; round < 10; ++round) {
    const RandomModel model = random_model(random, 70);
    const Checkpoint checkpoint(random, model.stored);
    const Destinations destinations(random, model);
    const LoadPlan plan = destinations.plan(checkpoint);
    if (plan.transfers.empty()) continue;
    const Catalog catalog = at_an_address(checkpoint.catalog);
    objects().fails = true;
    try {
      load(plan, catalog, destinations.specs, {});
      EXPECT_TRUE(objects().fails) << "not refused";  // nothing was asked for
      objects().fails = false;
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_EQ(error.kind, ErrorKind::io);
      EXPECT_NE(message.find("the store is gone"), std::string::npos) << message;
      EXPECT_NE(message.find(scheme), std::string::npos) << message;
      EXPECT_NE(message.find("tensor"), std::string::npos) << message;
    }
  }
}

TEST(remote_objects, addresses_have_a_scheme) {
  EXPECT_TRUE(is_remote("s3://bucket/x"));
  EXPECT_TRUE(is_remote("hf://organisation/name@main"));
  for (const char* path : {"file:///x", "/s3://x", "s3:/x", "a b://x", "://x", "x", ""})
    EXPECT_FALSE(is_remote(path)) << path;
}

TEST(remote_objects, more_than_an_object_holds_is_not_asked_for) {
  objects();
  const InputFile object("objects:///nowhere", 10, "first");
  char byte = 0;
  EXPECT_THROW(object.read(10, &byte, 1), Error);
  EXPECT_THROW(object.read(UINT64_MAX, &byte, 1), Error);
}

}  // namespace
}  // namespace shardwright
