#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/geometry/box.h"

namespace shardwright {

/// A tensor's dimensions, each factored row-major. Of a tensor [6, 10] the view (6) (5 2) has the shape
/// [6, 5, 2]: element [i, j] of the tensor is element [i, j / 2, j % 2] of the view, and the even columns of
/// the tensor are the box [0:6, 0:5, 0:1] of the view.
struct View {
  Shape sizes;  ///< of the factors, outermost first; their shape is the view's
  std::vector<int>
      dimensions;  ///< factor i is of the tensor's dimension dimensions[i]; never falls, skips none

  bool operator==(const View&) const = default;
};

/// The view in which each dimension is one factor.
View plain_view(const Shape& shape);

bool is_plain(const View& view);

/// The tensor's shape: along each dimension the product of its factors.
Shape tensor_shape(const View& view);

/// How far an index of the tensor's dimension moves from one index of each factor to the next.
Shape steps_of(const View& view);

/// The index in the tensor of an element of the view.
Shape index_in_tensor(const View& view, const Shape& index);

/// "(6) (5 2)".
std::string to_string(const View& view);

}  // namespace shardwright
