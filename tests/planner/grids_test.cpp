#include "planner/names/grids.h"

#include <gtest/gtest.h>

#include "planner/names/resolved_axes.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

/// A part of a native tensor, by an axis expression, and the grid of its HF tensor.
struct Part {
  const char* axes;
  Shape hf_shape;
  Grid grid;
  std::int64_t expert = 0;
};

NativeGrid grid_of(const std::vector<Part>& parts, const Sizes& sizes = {}) {
  std::vector<AxisExpression::Resolved> resolved;
  resolved.reserve(parts.size());
  std::vector<GriddedPart> gridded;
  for (const Part& part : parts)
    resolved.push_back(AxisExpression(part.axes).resolve(part.hf_shape, std::nullopt, sizes));
  for (std::size_t p = 0; p < parts.size(); ++p)
    gridded.push_back(
        {&resolved[p].correspondence, resolved[p].native_box_of(parts[p].expert, 0), parts[p].grid});
  return native_grid(gridded);
}

/// Bytes of two elements along the columns.
Grid bytes_of(std::int64_t rows, std::int64_t columns) { return {{rows, columns / 2}, {1, 2}}; }

TEST(grids, halves_that_are_joined_and_transposed_have_their_blocks_side_by_side) {
  const Grid scales{{2, 2}, {128, 32}};
  const NativeGrid grid =
      grid_of({{"o i -> i (0/2 o)", {200, 64}, scales}, {"o i -> i (1/2 o)", {200, 64}, scales}});
  EXPECT_EQ(grid.shape, (Shape{2, 4}));
  EXPECT_EQ(grid.parts[0].native_box, (Box{{0, 0}, {2, 2}}));
  EXPECT_EQ(grid.parts[1].native_box, (Box{{0, 2}, {2, 2}}));
  EXPECT_EQ(grid.parts[1].of->axes, (std::vector<int>{1, 0}));
}

TEST(grids, bytes_are_transposed_whole) {
  const NativeGrid grid = grid_of({{"o i -> {expert} i o", {6, 64}, bytes_of(6, 64), 0}}, {{"{expert}", 1}});
  EXPECT_EQ(grid.shape, (Shape{1, 32, 6}));
}

TEST(grids, one_number_for_each_part_is_one_along_the_dimension_that_joins_them) {
  const Grid one{{}, {0, 0}};
  const Sizes experts{{"{expert}", 3}};
  std::vector<Part> parts;
  for (std::int64_t expert = 0; expert < 3; ++expert) {
    parts.push_back({"o i -> {expert} i (0/2 o)", {4, 6}, one, expert});
    parts.push_back({"o i -> {expert} i (1/2 o)", {4, 6}, one, expert});
  }
  const NativeGrid grid = grid_of(parts, experts);
  EXPECT_EQ(grid.shape, (Shape{3, 1, 2}));
  EXPECT_EQ(grid.parts[3].native_box, (Box{{1, 0, 1}, {1, 1, 1}}));
}

TEST(grids, parts_of_unequal_sizes_count_their_own_blocks) {
  const Sizes sizes{{"q", 300}, {"k", 130}};
  const NativeGrid grid = grid_of({{"q i -> ([q]|k) i", {300, 64}, {{3, 1}, {128, 128}}},
                                   {"k i -> (q|[k]) i", {130, 64}, {{2, 1}, {128, 128}}}},
                                  sizes);
  EXPECT_EQ(grid.shape, (Shape{5, 1}));
  EXPECT_EQ(grid.parts[1].native_box, (Box{{3, 0}, {2, 1}}));
}

TEST(grids, a_tensor_of_its_own_keeps_what_its_scales_have_no_dimensions_for) {
  EXPECT_EQ(grid_of({{"e o i -> e o i", {5, 20, 30}, {{5}, {1, 0, 0}}}}).shape, (Shape{5}));
  EXPECT_EQ(grid_of({{"e o i -> e i o", {5, 20, 30}, {{5}, {1, 0, 0}}}}).shape, (Shape{5, 1, 1}));
}

TEST(grids, what_takes_a_block_apart_is_refused) {
  const auto refuse = [](const char* axes, const Shape& shape, const Grid& grid, const std::string& why) {
    expect_error(ErrorKind::mismatch, {why}, [&] {
      grid_of({{axes, shape, grid}}, {{"q", 100}, {"k", 100}});
    });
  };
  refuse("o (i 0/2) -> o i", {4, 64}, bytes_of(4, 64), "cuts dimension 1 inside a block");
  refuse("o (i 2) -> o (2 i)", {4, 64}, bytes_of(4, 64), "takes the elements of a block apart");
  refuse("(q|[k]) i -> k i", {200, 64}, {{2, 1}, {128, 64}}, "cuts dimension 0 inside a block");
}

TEST(grids, parts_that_do_not_fill_the_native_tensor_are_refused) {
  expect_error(ErrorKind::mismatch, {"do not lie side by side"}, [&] {
    grid_of({{"o i -> i (1/2 o)", {4, 64}, bytes_of(4, 64)}});
  });
  expect_error(ErrorKind::mismatch, {"do not fill it"}, [&] {
    grid_of({{"o i -> i (0/2 o)", {4, 64}, bytes_of(4, 64)}});
  });
}

}  // namespace
}  // namespace shardwright
