#include "planner/save/file_placement.h"

#include <gtest/gtest.h>

#include <map>

#include "tests/planner/random_layouts.h"

namespace shardwright {
namespace {

TEST(file_placement, files_are_filled_in_order_up_to_their_size) {
  using Files = std::vector<std::uint32_t>;
  EXPECT_EQ(place_in_files({4, 6, 1, 9}, 10), (Files{0, 0, 1, 1}));
  EXPECT_EQ(place_in_files({11, 1, 30, 0}, 10), (Files{0, 1, 2, 3}));
  EXPECT_EQ(place_in_files({}, 10), Files{});
}

TEST(file_placement, no_file_is_larger_than_asked_for_nor_could_take_the_next_tensor) {
  Random random(1);
  for (int round = 0; round < 100; ++round) {
    std::vector<std::uint64_t> bytes;
    for (std::int64_t i = random.between(1, 50); i > 0; --i)
      bytes.push_back(static_cast<std::uint64_t>(random.between(0, 120)));
    const auto files = place_in_files(bytes, 100);
    std::map<std::uint32_t, std::vector<std::uint64_t>> held;
    for (std::size_t i = 0; i < files.size(); ++i) held[files[i]].push_back(bytes[i]);
    for (const auto& [file, tensors] : held) {
      std::uint64_t sum = 0;
      for (const std::uint64_t size : tensors) sum += size;
      ASSERT_TRUE(sum <= 100 || tensors.size() == 1);
      if (held.contains(file + 1)) {
        ASSERT_GT(sum + held[file + 1].front(), 100U);
      }
    }
    ASSERT_EQ(held.size(), files.back() + 1);
  }
}

}  // namespace
}  // namespace shardwright
