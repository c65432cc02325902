#include "planner/geometry/view.h"

#include <gtest/gtest.h>

#include <map>

#include "planner/geometry/lattice.h"
#include "tests/planner/plain_lattice.h"
#include "tests/planner/random_layouts.h"

namespace shardwright {
namespace {

/// A view of one to three factors for each dimension.
View random_view(Random& random, std::int64_t rank) {
  View view;
  for (std::int64_t d = 0; d < rank; ++d) {
    for (std::int64_t i = random.between(1, 3); i > 0; --i) {
      view.sizes.push_back(random.between(1, 4));
      view.dimensions.push_back(static_cast<int>(d));
    }
  }
  return view;
}

/// The definition: both are row-major, so that an element has one number in the tensor and in the view.
Shape index_at(std::int64_t number, const Shape& shape) {
  Shape index(shape.size());
  for (std::size_t d = shape.size(); d-- > 0;) {
    index[d] = number % shape[d];
    number /= shape[d];
  }
  return index;
}

TEST(view, an_element_has_the_same_number_in_tensor_and_view) {
  Random random(1);
  for (int round = 0; round < 300; ++round) {
    const View view = random_view(random, random.between(0, 3));
    const Shape shape = tensor_shape(view);
    ASSERT_EQ(volume(shape), volume(view.sizes));
    for_each_index(view.sizes, [&](const Shape& index) {
      ASSERT_EQ(index_in_tensor(view, index),
                index_at(static_cast<std::int64_t>(flat(index, view.sizes)), shape))
          << to_string(view);
    });
  }
}

TEST(view, boxes_of_a_box_hold_its_elements_once_and_are_few) {
  Random random(2);
  for (int round = 0; round < 2000; ++round) {
    const View view = random_view(random, random.between(0, 3));
    const Shape shape = tensor_shape(view);
    const Box box = random_box(random, shape, 0);
    std::size_t most = 1;
    for (std::size_t d = 0; d < shape.size(); ++d) {
      most *= static_cast<std::size_t>(
          2 * std::count(view.dimensions.begin(), view.dimensions.end(), static_cast<int>(d)) - 1);
    }
    const std::vector<Box> boxes = boxes_in_view(view, box);
    ASSERT_LE(boxes.size(), is_empty(box) ? std::max<std::size_t>(most, 1) : most)
        << to_string(view) << to_string(box);
    std::vector<int> count(static_cast<std::size_t>(volume(shape)), 0);
    for (const Box& part : boxes) {
      ASSERT_TRUE(lies_inside(part, view.sizes));
      for_each_index(part.size,
                     [&](const Shape& step) { ++count[flat(plus(step, part.offset), view.sizes)]; });
    }
    for_each_index(shape, [&](const Shape& index) {
      ASSERT_EQ(count[flat(index, shape)], holds(box, index)) << to_string(view) << " " << to_string(box);
    });
  }
}

TEST(view, is_told_as_people_write_it) {
  EXPECT_EQ(to_string(View{{6, 5, 2}, {0, 1, 1}}), "(6) (5 2)");
  EXPECT_EQ(to_string(plain_view({})), "");
  EXPECT_TRUE(is_plain(plain_view({3, 1})));
  EXPECT_FALSE(is_plain(View{{3, 1}, {0, 0}}));
}

/// How often each element of the tensor is in one of the lattices.
std::vector<int> marks(const Shape& shape, const std::vector<Lattice>& lattices) {
  std::vector<int> count(static_cast<std::size_t>(volume(shape)), 0);
  for (const Lattice& lattice : lattices) {
    for_each_index(lattice.sizes, [&](const Shape& step) {
      const Shape at = element_of(lattice, step);
      ++count[flat(at, shape)];
    });
  }
  return count;
}

/// What a part of a tensor has of boxes of a view of the whole, its factors in any order.
std::vector<Lattice> part_of(Random& random, const View& view, const std::vector<Box>& boxes,
                             const Box& part) {
  std::vector<Lattice> lattices;
  for (const Box& within : boxes_in_view(view, part)) {
    for (const Box& box : boxes) {
      Box common = intersection(box, within);
      if (is_empty(common)) continue;
      Lattice lattice = lattice_of(view, common);
      for (std::size_t d = 0; d < part.offset.size(); ++d) lattice.first[d] -= part.offset[d];
      for (std::size_t i = lattice.sizes.size(); i > 1; --i) {
        const auto other = static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(i) - 1));
        std::swap(lattice.sizes[i - 1], lattice.sizes[other]);
        std::swap(lattice.axes[i - 1], lattice.axes[other]);
        std::swap(lattice.steps[i - 1], lattice.steps[other]);
      }
      for (std::size_t i = 0; i < lattice.sizes.size(); ++i) {
        if (lattice.sizes[i] == 1 && random.between(0, 1) == 0) lattice.axes[i] = -1;
      }
      lattices.push_back(std::move(lattice));
    }
  }
  return lattices;
}

TEST(lattice, tiling_fault_and_union_say_what_marking_every_element_says) {
  Random random(3);
  std::map<std::string, int> seen;
  for (int round = 0; round < 4000; ++round) {
    // Boxes of one view or of two of the same tensor, which need not have a factor in common.
    const std::int64_t rank = random.between(1, 3);
    View view = random_view(random, rank);
    const Shape shape = tensor_shape(view);
    const Box part = random_box(random, shape, 1);
    std::vector<Lattice> lattices =
        part_of(random, view, random_tiling(random, whole(view.sizes), random.between(0, 6)), part);
    if (random.between(0, 2) == 0) {
      std::vector<std::size_t> order(view.sizes.size());
      for (std::size_t i = 0; i + 1 < view.sizes.size(); ++i) {
        if (view.dimensions[i] == view.dimensions[i + 1]) std::swap(view.sizes[i], view.sizes[i + 1]);
      }
      const Box any = random_box(random, view.sizes, 1);
      for (Lattice& more : part_of(random, view, {any}, part)) lattices.push_back(std::move(more));
    }
    if (random.between(0, 2) == 0 && lattices.size() > 1) lattices.pop_back();
    for (const Lattice& lattice : lattices) ASSERT_TRUE(lies_inside(lattice, part.size));

    const std::vector<int> count = marks(part.size, lattices);
    const auto bare = std::count(count.begin(), count.end(), 0);
    const bool twice = std::any_of(count.begin(), count.end(), [](int n) { return n > 1; });
    const std::string fault = tiling_fault(part.size, lattices);
    ASSERT_EQ(fault.find("written twice") != std::string::npos, twice) << fault;
    ASSERT_EQ(!fault.empty(), twice || bare > 0) << fault;
    ASSERT_EQ(union_volume(part.size, lattices), static_cast<std::int64_t>(count.size()) - bare);
    ++seen[twice                                        ? "twice"
           : bare > 0                                   ? "bare"
           : is_plain(common_view(part.size, lattices)) ? "plain"
                                                        : "whole"];

    const View common = common_view(part.size, lattices);
    const Shape rounded = tensor_shape(common);
    for (const Lattice& lattice : lattices) {
      const std::vector<int> expected = marks(part.size, {lattice});
      std::vector<int> found(count.size(), 0);
      for (const Box& box : boxes_in_view(common, lattice)) {
        ASSERT_TRUE(lies_inside(box, common.sizes));
        for_each_index(box.size, [&](const Shape& step) {
          ++found.at(flat(index_in_tensor(common, plus(step, box.offset)), part.size));
        });
      }
      ASSERT_EQ(found, expected) << to_string(common);
    }
  }
  for (const char* kind : {"twice", "bare", "plain", "whole"}) EXPECT_GT(seen[kind], 100) << kind;
}

TEST(lattice, lies_inside_says_what_looking_at_every_element_says) {
  Random random(4);
  int inside = 0;
  for (int round = 0; round < 20000; ++round) {
    const Shape shape = random_shape(random, random.between(0, 2), 1, 12);
    Lattice lattice{random_shape(random, std::ssize(shape), -1, 4), {}, {}, {}};
    for (std::int64_t i = random.between(0, 3); i > 0; --i) {
      lattice.sizes.push_back(random.between(0, 4));
      lattice.axes.push_back(static_cast<int>(random.between(-1, std::ssize(shape))));
      lattice.steps.push_back(random.between(0, 5));
    }
    // The plain definition: all there, each once. Factors of one index may have any step.
    bool expected = true;
    for (std::size_t i = 0; i < lattice.sizes.size(); ++i) {
      expected &= lattice.axes[i] < std::ssize(shape) && lattice.steps[i] >= 1;
      expected &= lattice.axes[i] >= 0 || lattice.sizes[i] <= 1;
    }
    std::map<Shape, int> met;
    if (expected) {
      for_each_index(lattice.sizes, [&](const Shape& step) {
        const Shape at = element_of(lattice, step);
        expected &= lies_inside(Box{at, Shape(at.size(), 1)}, shape) && ++met[at] == 1;
      });
    }
    // It may refuse what crosses its own steps, such as {2, 3} apart, but nothing that it need not.
    if (lies_inside(lattice, shape) && volume(lattice.sizes) > 0) {
      ASSERT_TRUE(expected);
      ++inside;
    }
  }
  EXPECT_GT(inside, 500);
  constexpr std::int64_t huge = std::numeric_limits<std::int64_t>::max();
  EXPECT_FALSE(lies_inside(Lattice{{0}, {huge, huge}, {0, 0}, {huge, 1}}, {huge}));
  EXPECT_FALSE(lies_inside(Lattice{{1}, {huge}, {0}, {1}}, {huge}));
  EXPECT_TRUE(lies_inside(Lattice{{0}, {huge}, {0}, {1}}, {huge}));
  EXPECT_FALSE(lies_inside(Lattice{{0, 0}, {2}, {0}, {1}}, {2}));
}

}  // namespace
}  // namespace shardwright
