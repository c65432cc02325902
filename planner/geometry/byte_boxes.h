#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "planner/geometry/lattice.h"

namespace shardwright {

// Boxes of tensors whose elements share bytes, two in each (F4, I4), counted in bytes along the last
// dimension: the smallest that hold all elements. Those of any other dtype stay as they are. A packed tensor
// has a dimension, and an even number of elements along the last.

/// Bytes of a unit along the last dimension: of an element, or 1 where elements share bytes.
std::int64_t unit_bytes(DType dtype);

/// A tensor's shape in units.
Shape in_units(DType dtype, Shape shape);

/// A box of it in units. Worked example: of F4 [4, 10], rows 1 to 2 and columns 3 to 6 are [1:3, 1:4].
Box in_units(DType dtype, Box box);

/// The same of a lattice, whose last factor is the last dimension.
Lattice in_units(DType dtype, Lattice lattice);

/// Bytes that a box takes.
std::int64_t bytes_of_box(DType dtype, const Box& box);

/// Elements of memory in which a unit of the last dimension follows the other, for strides in units; and
/// back.
Shape strides_in_elements(DType dtype, Shape strides_in_units);
Shape strides_in_units(DType dtype, Shape strides_in_elements);

/// Bytes from the byte that holds an element to the one that holds the element so many further on. Row
/// strides of packed elements are even.
std::int64_t bytes_to(DType dtype, std::int64_t elements);

}  // namespace shardwright
