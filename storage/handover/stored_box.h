#pragma once

#include <optional>

#include "kernels/dtype.h"
#include "planner/geometry/box.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// The box that a box of one shape is in another one with as many elements; nothing if it is none there.
/// Worked example: of [2, 6, 5] the box [1:2, 0:3, 0:5] is the box [6:9, 0:5] of [12, 5], and
/// [0:2, 1:2, 0:5] is none.
std::optional<Box> box_in_shape(const Shape& from, const Box& box, const Shape& to);

/// A box of a stored tensor in words of the files. REQUIRES nothing of the caller: whoever views the tensor
/// as elements of `unit`, in the shape `view`, finds it there.
struct StoredBox {
  DType unit = DType::U8;  ///< the tensor's dtype; U8 where the box cuts its elements
  Shape view;              ///< the tensor's shape; another one where the box is none of that
  Box box;
};

/// Of a box of the tensor as it is seen, in that shape. `tensor` is a whole tensor.
StoredBox stored_box(const SourceTensor& tensor, const Shape& seen, const Box& box);

}  // namespace shardwright
