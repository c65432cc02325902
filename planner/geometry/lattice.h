#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/geometry/view.h"

namespace shardwright {

/// The elements of a tensor that a box of one of its views picks, or of a view of a larger tensor that it is
/// a part of: for each factor so many indices, so far apart along one dimension. The even columns of a tensor
/// [6, 10] are {{0, 0}, {6, 5}, {0, 1}, {1, 2}}.
struct Lattice {
  Shape first;            ///< index of the first element
  Shape sizes;            ///< of the factors
  std::vector<int> axes;  ///< the dimension along which each factor runs; -1 for a factor of one index only
  Shape steps;            ///< from one index of each factor to the next; at least 1

  bool operator==(const Lattice&) const = default;
};

/// A box of a tensor.
Lattice lattice_of(const Box& box);

/// The box that a lattice is whose steps are all 1.
Box box_of(const Lattice& lattice);

/// A box of a view of a tensor.
Lattice lattice_of(const View& view, const Box& box);

/// Whether these numbers, whatever they are, pick elements of a tensor of this shape, none of them twice.
bool lies_inside(const Lattice& lattice, const Shape& shape);

/// A view in which lattices of a tensor are boxes, or few. The factors' steps divide one another; where the
/// steps of the lattices do not, some lattices become as many boxes as a factor has indices. The outermost
/// factor of a dimension is rounded up, so that the view may hold more than the tensor.
View common_view(const Shape& shape, const std::vector<Lattice>& lattices);

/// The boxes of the view that hold the elements of a box of the tensor, each once, in no promised order. A
/// range of a dimension of k factors takes at most 2k - 1 boxes.
std::vector<Box> boxes_in_view(const View& view, const Box& box);

/// The boxes of such a view that hold the elements of the lattice, each once. The lattice must lie inside.
std::vector<Box> boxes_in_view(const View& view, const Lattice& lattice);

/// How many elements are in one or more of the lattices of a tensor of that shape.
std::int64_t union_volume(const Shape& shape, const std::vector<Lattice>& lattices);

/// How a set of lattices fails to tile a tensor exactly once, for messages; empty if it does tile it. All
/// must lie inside. Where steps are not 1, the message speaks of the common view, which it gives.
std::string tiling_fault(const Shape& shape, const std::vector<Lattice>& lattices);

/// How many elements of a tensor are in more than one of the lattices, for messages; empty if none is. All
/// must lie inside.
std::string overlap_fault(const Shape& shape, const std::vector<Lattice>& lattices);

}  // namespace shardwright
