#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace shardwright {

/// Sizes, offsets or strides, one for each dimension, outermost first.
using Shape = std::vector<std::int64_t>;

/// Sizes by name, such as a model's config has them.
using Sizes = std::map<std::string, std::int64_t, std::less<>>;

/// A rectangle of a tensor: along dimension d it covers offset[d] .. offset[d] + size[d] - 1.
/// A box of rank 0 is the one element of a scalar. A box with a size of 0 is empty.
struct Box {
  Shape offset;
  Shape size;

  bool operator==(const Box&) const = default;
};

/// Product of the sizes; 1 for rank 0.
std::int64_t volume(const Shape& size);

/// The box of a whole tensor of this shape.
Box whole(const Shape& shape);

/// The part that two boxes of equal rank have in common; a box with sizes of 0 where there is none.
Box intersection(const Box& a, const Box& b);

/// Whether the box has a size of 0. That of a scalar, of rank 0, is not empty.
bool is_empty(const Box& box);

/// Whether two boxes of equal rank have elements in common.
bool intersects(const Box& a, const Box& b);

/// Whether these numbers, whatever they are, make a box of a tensor of this shape.
bool lies_inside(const Box& box, const Shape& shape);

/// Boxes that hold each element of the given ones once, neighbours joined: the boxes of a grid become one.
/// All must be of equal rank. Takes n log n time for the boxes of a grid, up to n^2 for others.
std::vector<Box> union_of(std::vector<Box> boxes);

/// How many elements are in one or more of these boxes.
std::int64_t union_volume(const std::vector<Box>& boxes);

/// Row-major strides, in elements, of a contiguous tensor.
Shape contiguous_strides(const Shape& shape);

/// How many elements, in a tensor of these strides, lie between its first element and the one of that index.
std::int64_t elements_to(const Shape& index, const Shape& strides);

/// Goes on to the next index of so many dimensions of these sizes, the last of them first. False, and all
/// zero, after the last index.
bool next_index(Shape& index, const Shape& sizes);

/// "[3, 5]", as messages show a shape.
std::string to_string(const Shape& shape);

/// "[0:3, 2:5]", as messages show a box.
std::string to_string(const Box& box);

/// Two of these boxes, all of equal rank, that have elements in common; nothing if none have. Takes n log n
/// time where at most two dimensions are cut and for the boxes of a grid; empty boxes overlap nothing.
std::optional<std::pair<Box, Box>> overlap(std::vector<Box> boxes);

/// A part of the region that is in none of the boxes, of which no two overlap; nothing if they fill it. It
/// reaches as far as no box is in the way. Takes n log n time.
std::optional<Box> hole(Box region, std::vector<Box> boxes);

/// How a set of boxes fails to tile a region exactly once, for messages; empty if it does tile it.
/// All boxes must lie inside `region`. Takes the time of overlap().
std::string tiling_fault(const Box& region, std::vector<Box> boxes);

}  // namespace shardwright
