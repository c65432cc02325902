#include "storage/files/output_files.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include "storage/files/open_files.h"
#include "storage/threads.h"
#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

TEST(output_files, more_than_may_be_open_are_filled_by_threads_in_any_order) {
  constexpr std::size_t count = 60;
  constexpr std::size_t part = 100;
  constexpr std::size_t parts = 20;
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlim_t usual = std::exchange(limit.rlim_cur, 40);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  const TemporaryDirectory directory;
  std::vector<std::string> names;
  std::vector<std::string> expected(count);
  Random random(3);
  for (std::size_t file = 0; file < count; ++file) {
    names.push_back("file" + std::to_string(file));
    for (std::size_t at = 0; at < part * parts; ++at)
      expected[file] += static_cast<char>(random.between(0, 127));
  }
  std::vector<std::size_t> order(count * parts);
  for (std::size_t i = 0; i < order.size(); ++i) {
    order[i] = i;
    std::swap(order[i], order[static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(i)))]);
  }
  OutputFiles files(directory.path, names);
  EXPECT_GT(count, most_open_files());
  for_each_index(order.size(), 8, [&](std::size_t i) {
    const std::size_t file = order[i] / parts;
    const std::size_t begin = order[i] % parts * part;
    files.write(file, begin, reinterpret_cast<const std::byte*>(expected[file].data() + begin), part,
                "a part");
  });
  files.finish();
  limit.rlim_cur = usual;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(files.count(), static_cast<std::int64_t>(count));
  EXPECT_EQ(files.bytes(), count * parts * part);
  for (std::size_t file = 0; file < count; ++file)
    EXPECT_EQ(read_file(directory / names[file]), expected[file]);
}

}  // namespace
}  // namespace shardwright
