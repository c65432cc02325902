#include "planner/geometry/byte_boxes.h"

#include <gtest/gtest.h>

#include <set>

#include "tests/planner/random_layouts.h"

namespace shardwright {
namespace {

TEST(byte_boxes, hold_the_bytes_of_all_elements_of_a_box_and_no_others) {
  Random random(1);
  for (int round = 0; round < 500; ++round) {
    const Shape shape = {random.between(1, 4), 2 * random.between(1, 9)};
    const Box box = random_box(random, shape, 1);
    std::set<std::int64_t> expected;  // bytes of the row-major tensor, two elements in each
    for_each_index(box.size, [&](const Shape& step) {
      expected.insert(static_cast<std::int64_t>(flat(plus(step, box.offset), shape)) / 2);
    });
    for (const DType dtype : {DType::F4, DType::I4}) {
      const Box bytes = in_units(dtype, box);
      std::set<std::int64_t> found;
      for_each_index(bytes.size, [&](const Shape& step) {
        found.insert(static_cast<std::int64_t>(flat(plus(step, bytes.offset), in_units(dtype, shape))));
      });
      ASSERT_EQ(found, expected) << to_string(box) << " of " << to_string(shape);
      ASSERT_EQ(bytes_of_box(dtype, box), std::ssize(expected));
    }
    ASSERT_EQ(in_units(DType::BF16, box), box);
    ASSERT_EQ(bytes_of_box(DType::F32, box), 4 * volume(box.size));
  }
}

TEST(byte_boxes, strides_go_there_and_back) {
  EXPECT_EQ(strides_in_elements(DType::F4, {20, 5, 1}), (Shape{40, 10, 1}));
  EXPECT_EQ(strides_in_units(DType::F4, {40, 10, 1}), (Shape{20, 5, 1}));
  EXPECT_EQ(strides_in_elements(DType::BF16, {20, 1}), (Shape{20, 1}));
  EXPECT_EQ(bytes_to(DType::F4, 7), 3);
  EXPECT_EQ(bytes_to(DType::F32, 7), 28);
}

}  // namespace
}  // namespace shardwright
