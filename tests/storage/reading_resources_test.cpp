#include "storage/load/reading_resources.h"

#include <gtest/gtest.h>

#include "planner/error.h"
#include "tests/planner/random_checkpoint.h"

namespace shardwright {
namespace {

TEST(reading_resources, staging_stays_within_bounds_for_any_number_of_threads_and_any_files) {
  constexpr std::size_t most = std::size_t{128} << 20;
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    LoadOptions options;
    options.threads = static_cast<int>(random.between(1, random.once_in(2) ? 2000 : 8));
    options.huge_pages = random.once_in(2);
    if (random.once_in(2)) options.staging_bytes = static_cast<std::size_t>(random.between(1 << 16, 1 << 28));
    FileReading reading;
    reading.some_on_disk = random.once_in(2);
    reading.in_background = {random.once_in(2)};
    const bool direct = random.once_in(2);
    const Resources found = resources_for(options, reading, direct, 1 << 20);
    const auto buffers = static_cast<std::size_t>(found.threads * found.buffers_per_thread);
    EXPECT_GE(found.threads, 1);
    EXPECT_LE(buffers * found.buffer_bytes, options.staging_bytes > 0 ? options.staging_bytes : most);
    // With less nothing could be read past the page cache.
    const bool must_hold_pages = direct || options.staging_bytes == 0;
    EXPECT_GE(found.buffer_bytes, must_hold_pages ? std::size_t{64} << 10 : std::size_t{4096});
  }
}

TEST(reading_resources, a_few_threads_get_what_keeps_a_disk_busy_and_a_cache_warm) {
  LoadOptions options;
  options.threads = 2;
  FileReading reading;
  reading.in_background = {false};
  Resources found = resources_for(options, reading, false, 1000);
  EXPECT_EQ(found.threads, 2);
  EXPECT_EQ(found.buffers_per_thread, 1);
  EXPECT_EQ(found.buffer_bytes, std::size_t{1} << 20);
  reading.in_background = {true};
  reading.some_on_disk = true;
  found = resources_for(options, reading, true, 1000);
  EXPECT_EQ(found.threads * found.buffers_per_thread, 16);
  EXPECT_EQ(found.buffer_bytes, std::size_t{4} << 20);
  EXPECT_TRUE(found.huge_pages);
}

TEST(reading_resources, staging_for_objects_stays_within_bounds_and_several_requests_are_under_way) {
  constexpr std::size_t most = std::size_t{272} << 20;  // docs/how-to/remote.md
  Random random(2);
  for (int round = 0; round < 2000; ++round) {
    LoadOptions options;
    options.threads = static_cast<int>(random.between(1, 16));
    if (random.once_in(2)) options.staging_bytes = static_cast<std::size_t>(random.between(1 << 16, 1 << 29));
    FileReading reading;
    reading.are_objects = true;
    reading.request_bytes = static_cast<std::size_t>(random.between(1 << 18, 17 << 20));
    reading.requests_at_once = static_cast<std::size_t>(random.between(8, 16));
    const Resources found = resources_for(options, reading, false, 1 << 20);
    const auto buffers = static_cast<std::size_t>(found.threads * found.buffers_per_thread);
    EXPECT_GE(found.threads, 1);
    EXPECT_LE(buffers * found.buffer_bytes, options.staging_bytes > 0 ? options.staging_bytes : most);
    const bool has_some = options.staging_bytes == 0 || options.staging_bytes >= std::size_t{64} << 20;
    EXPECT_GE(buffers, has_some ? 6U : 1U) << options.threads << " " << options.staging_bytes;
  }
}

}  // namespace
}  // namespace shardwright
