#include "planner/geometry/box.h"

#include <gtest/gtest.h>

#include <limits>
#include <sstream>

#include "tests/planner/random_layouts.h"

namespace shardwright {
namespace {

/// How often each element of the region is in one of the boxes.
std::vector<int> marks(const Box& region, const std::vector<Box>& boxes) {
  std::vector<int> count(static_cast<std::size_t>(volume(region.size)), 0);
  for_each_index(region.size, [&](const Shape& index) {
    for (const Box& box : boxes) count[flat(index, region.size)] += holds(box, plus(index, region.offset));
  });
  return count;
}

/// Reads back "elements [1:2, 0:4] are written twice".
Box box_in(std::string message) {
  for (char& c : message) {
    if (c != '-' && (c < '0' || c > '9')) c = ' ';
  }
  std::istringstream numbers(message);
  Box box;
  for (std::int64_t begin, end; numbers >> begin >> end;) {
    box.offset.push_back(begin);
    box.size.push_back(end - begin);
  }
  return box;
}

void expect_the_verdict_of_marking(const Box& region, const std::vector<Box>& boxes) {
  const std::vector<int> count = marks(region, boxes);
  const auto bare = std::count(count.begin(), count.end(), 0);
  const bool twice = std::any_of(count.begin(), count.end(), [](int n) { return n > 1; });
  const std::string fault = tiling_fault(region, boxes);
  if (twice) {
    ASSERT_NE(fault.find("are written twice"), std::string::npos) << fault;
    const Box named = box_in(fault);
    ASSERT_EQ(named.size.size(), region.size.size()) << fault;
    ASSERT_FALSE(is_empty(named));
    for_each_index(region.size, [&](const Shape& index) {
      ASSERT_TRUE(!holds(named, plus(index, region.offset)) || count[flat(index, region.size)] > 1) << fault;
    });
  } else if (bare > 0) {
    ASSERT_EQ(fault, std::to_string(bare) + " of " + std::to_string(count.size()) + " elements of " +
                         to_string(region) + " have no source");
  } else {
    ASSERT_EQ(fault, "");
  }
}

Box random_region(Random& random, std::int64_t rank, std::int64_t least) {
  return {random_shape(random, rank, 0, 5), random_shape(random, rank, least, rank > 2 ? 5 : 12)};
}

Box random_part(Random& random, const Box& region, std::int64_t least) {
  Box box = random_box(random, region.size, least);
  box.offset = plus(box.offset, region.offset);
  return box;
}

TEST(box, tiling_fault_says_what_marking_every_element_says) {
  Random random(1);
  for (int round = 0; round < 4000; ++round) {
    const Box region = random_region(random, random.between(0, 4), 1);
    std::vector<Box> boxes = random_tiling(random, region, random.between(0, 12));
    const auto any = [&] { return static_cast<std::size_t>(random.between(0, std::ssize(boxes) - 1)); };
    switch (random.between(0, 5)) {
      case 0:
        boxes.erase(boxes.begin() + static_cast<std::ptrdiff_t>(any()));
        break;
      case 1:
        boxes.push_back(boxes[any()]);
        break;
      case 2:
        boxes.push_back(random_part(random, region, 1));
        break;
      case 3:
        boxes[any()] = random_part(random, region, 0);
        break;
      default:
        break;
    }
    for (int n = static_cast<int>(random.between(0, 2)); n > 0 && !region.size.empty(); --n) {
      Box empty = random_part(random, region, 0);
      empty.size[0] = 0;
      boxes.push_back(empty);
    }
    random.shuffle(boxes);
    ASSERT_NO_FATAL_FAILURE(expect_the_verdict_of_marking(region, boxes)) << "round " << round;
  }
}

TEST(box, boxes_that_no_straight_cut_separates_still_tile) {
  // A pinwheel: four boxes around a fifth.
  const std::vector<Box> pinwheel = {
      {{0, 0}, {1, 2}}, {{0, 2}, {2, 1}}, {{2, 1}, {1, 2}}, {{1, 0}, {2, 1}}, {{1, 1}, {1, 1}}};
  expect_the_verdict_of_marking({{0, 0}, {3, 3}}, pinwheel);
  for (std::size_t i = 0; i < pinwheel.size(); ++i) {
    std::vector<Box> boxes = pinwheel;
    boxes[i].size[0] += 1;
    if (boxes[i].offset[0] + boxes[i].size[0] <= 3) expect_the_verdict_of_marking({{0, 0}, {3, 3}}, boxes);
    boxes.erase(boxes.begin() + static_cast<std::ptrdiff_t>(i));
    expect_the_verdict_of_marking({{0, 0}, {3, 3}}, boxes);
  }
}

TEST(box, random_boxes_are_judged_as_marking_judges_them) {
  Random random(2);
  for (int round = 0; round < 2000; ++round) {
    const Box region = random_region(random, random.between(1, 3), 1);
    std::vector<Box> boxes;
    for (std::int64_t n = random.between(0, 6); n > 0; --n) boxes.push_back(random_part(random, region, 0));
    ASSERT_NO_FATAL_FAILURE(expect_the_verdict_of_marking(region, boxes)) << "round " << round;
  }
}

TEST(box, an_empty_region_takes_empty_boxes_only) {
  EXPECT_EQ(tiling_fault({{0, 0}, {3, 0}}, {}), "");
  EXPECT_EQ(tiling_fault({{0, 0}, {3, 0}}, {{{1, 0}, {2, 0}}}), "");
  EXPECT_NE(tiling_fault({{0, 0}, {3, 0}}, {{{1, 0}, {2, 1}}}), "");
}

TEST(box, a_scalar_is_written_by_exactly_one_box) {
  EXPECT_EQ(tiling_fault({}, {{}}), "");
  EXPECT_NE(tiling_fault({}, {}), "");
  EXPECT_NE(tiling_fault({}, {{}, {}}), "");
}

TEST(box, the_grid_of_a_large_tensor_is_judged_in_no_time) {
  std::vector<Box> boxes;
  for (std::int64_t row = 0; row < 300; ++row) {
    for (std::int64_t column = 0; column < 300; ++column) boxes.push_back({{row * 8, column * 8}, {8, 8}});
  }
  EXPECT_EQ(tiling_fault(whole({2400, 2400}), boxes), "");
  boxes[77777].offset[1] -= 1;
  EXPECT_NE(tiling_fault(whole({2400, 2400}), boxes), "");
}

TEST(box, a_hole_is_what_no_box_holds) {
  Random random(5);
  int holes = 0;
  for (int round = 0; round < 500; ++round) {
    const Box region{{random.between(-3, 3), random.between(0, 9), 2},
                     {random.between(1, 7), random.between(1, 7), random.between(1, 7)}};
    std::vector<Box> boxes = random_tiling(random, region, random.between(0, 12));
    random.shuffle(boxes);
    const std::size_t dropped = std::min<std::size_t>(boxes.size(), random.between(0, 3));
    const std::vector<Box> missing(boxes.end() - static_cast<std::ptrdiff_t>(dropped), boxes.end());
    boxes.resize(boxes.size() - dropped);
    const auto found = hole(region, boxes);
    ASSERT_EQ(found.has_value(), dropped > 0);
    if (!found) continue;
    ++holes;
    ASSERT_FALSE(is_empty(*found));
    ASSERT_EQ(union_volume(missing), union_volume([&] {
                std::vector<Box> with_it = missing;
                with_it.push_back(*found);
                return with_it;
              }()));
  }
  EXPECT_GT(holes, 100);
}

TEST(box, a_missing_cell_of_a_grid_is_the_hole) {
  Random random(6);
  for (int round = 0; round < 100; ++round) {
    std::vector<Box> cells;
    const std::int64_t across = random.between(1, 6);
    for (std::int64_t i = 0; i < random.between(1, 6); ++i) {
      for (std::int64_t k = 0; k < across; ++k) cells.push_back({{5 * i, 0, 7 * k}, {5, 3, 7}});
    }
    const Box region{{0, 0, 0}, {cells.back().offset[0] + 5, 3, cells.back().offset[2] + 7}};
    std::erase_if(cells, [&](const Box& cell) { return !lies_inside(cell, region.size); });
    if (static_cast<std::int64_t>(cells.size()) * 105 != volume(region.size)) continue;
    random.shuffle(cells);
    const Box missing = cells.back();
    cells.pop_back();
    ASSERT_EQ(hole(region, cells), missing);
  }
}

TEST(box, numbers_that_make_no_box_of_a_tensor_lie_outside_of_it) {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  const Shape shape{4, 5};
  for (const Box& box : std::vector<Box>{{{0, 0}, {4, 5}}, {{4, 5}, {0, 0}}, {{1, 2}, {3, 3}}})
    EXPECT_TRUE(lies_inside(box, shape)) << to_string(box);
  for (const Box& box : std::vector<Box>{{{0, 0}, {5, 5}},
                                         {{-1, 0}, {4, 5}},
                                         {{0, 0}, {4, -1}},
                                         {{1, 0}, {most, 5}},
                                         {{most, 0}, {1, 5}},
                                         {{0}, {4}},
                                         {{}, {4, 5}},
                                         {{0, 0, 0}, {4, 5, 1}}}) {
    EXPECT_FALSE(lies_inside(box, shape));
  }
}

TEST(box, intersection_holds_the_elements_that_both_hold) {
  Random random(3);
  for (int round = 0; round < 3000; ++round) {
    const Shape room = random_shape(random, random.between(0, 3), 1, 7);
    const Box a = random_box(random, room, 0);
    const Box b = random_box(random, room, 0);
    const Box common = intersection(a, b);
    bool any = false;
    for_each_index(room, [&](const Shape& index) {
      ASSERT_EQ(holds(common, index), holds(a, index) && holds(b, index)) << to_string(a) << to_string(b);
      any |= holds(a, index) && holds(b, index);
    });
    ASSERT_EQ(is_empty(common), !any);
    for (const std::int64_t size : common.size) ASSERT_GE(size, 0);
  }
}

TEST(box, union_volume_counts_the_elements_that_any_box_holds) {
  Random random(5);
  for (int round = 0; round < 1000; ++round) {
    const Box region = random_region(random, random.between(0, 4), 1);
    std::vector<Box> boxes;
    for (std::int64_t n = random.between(0, 6); n > 0; --n) boxes.push_back(random_part(random, region, 0));
    const std::vector<int> count = marks(region, boxes);
    ASSERT_EQ(union_volume(boxes), std::ssize(count) - std::count(count.begin(), count.end(), 0))
        << "round " << round;
  }
}

TEST(box, union_of_holds_each_element_of_the_boxes_once_and_nothing_else) {
  Random random(6);
  for (int round = 0; round < 1000; ++round) {
    const Box region = random_region(random, random.between(0, 4), 1);
    std::vector<Box> boxes;
    for (std::int64_t n = random.between(0, 6); n > 0; --n) boxes.push_back(random_part(random, region, 0));
    std::vector<int> expected = marks(region, boxes);
    for (int& count : expected) count = std::min(count, 1);
    ASSERT_EQ(marks(region, union_of(boxes)), expected) << "round " << round;
  }
}

TEST(box, union_of_a_grid_is_one_box_in_any_order_and_however_often_each_comes) {
  Random random(7);
  for (int round = 0; round < 100; ++round) {
    const Shape cells = random_shape(random, random.between(1, 4), 1, 4);
    const Shape cell = random_shape(random, std::ssize(cells), 1, 3);
    Shape size = cells;
    for (std::size_t d = 0; d < size.size(); ++d) size[d] *= cell[d];
    std::vector<Box> boxes;
    for_each_index(cells, [&](const Shape& at) {
      Shape offset = at;
      for (std::size_t d = 0; d < offset.size(); ++d) offset[d] *= cell[d];
      for (std::int64_t times = random.between(1, 3); times > 0; --times) boxes.push_back({offset, cell});
    });
    random.shuffle(boxes);
    ASSERT_EQ(union_of(boxes), std::vector<Box>{whole(size)}) << "round " << round;
  }
}

TEST(box, contiguous_strides_count_the_elements_between_neighbours) {
  Random random(4);
  for (int round = 0; round < 200; ++round) {
    const Shape shape = random_shape(random, random.between(0, 4), 1, 5);
    const Shape strides = contiguous_strides(shape);
    for_each_index(shape, [&](const Shape& index) {
      std::int64_t position = 0;
      for (std::size_t d = 0; d < shape.size(); ++d) position += index[d] * strides[d];
      ASSERT_EQ(static_cast<std::size_t>(position), flat(index, shape));
    });
  }
}

}  // namespace
}  // namespace shardwright
