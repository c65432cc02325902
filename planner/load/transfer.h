#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/names/catalog.h"
#include "planner/names/encodings.h"

namespace shardwright {

struct Lattice;  // planner/geometry/lattice.h
struct View;     // planner/geometry/view.h

/// This box of this source tensor, with the scales it needs, is those elements of that destination shard.
///
/// A source [6, 10] whose even columns are the rows of a destination [5, 6] is seen in the view [6, 5, 2]:
/// the source box is [0:6, 0:5, 0:1], the axes are {1, 0, -1}. Read from right to left it writes every other
/// column.
struct Transfer {
  std::uint32_t source = 0;  ///< index into Catalog::tensors
  std::int64_t scales =
      -1;  ///< index into Catalog::tensors of the tensor (or chunk) with the scales; -1: none needed
  std::int64_t global = -1;  ///< the same of the global scale: one number; -1: there is none
  Encoding encoding;

  /// The sizes of the view in which source_box is a box: the source's dimensions, each in one factor or more.
  /// Empty: the source's own shape. In another one, with scales, the last dimension is one factor, and a
  /// block has one row; then the scales are seen in the same view: see seen_scale_shape().
  Shape source_view;
  Box source_box;  ///< inside the source tensor (or chunk), as it is seen
  Box scale_box;   ///< inside the tensor (or chunk) of scales, if there is one, as it is seen

  /// Where the first row and column of source_box lie inside the first block of scale_box.
  std::int64_t first_row_in_block = 0;
  std::int64_t first_column_in_block = 0;

  std::uint32_t destination = 0;  ///< index into the specs
  Shape destination_offset;       ///< where source_box's first element goes in the local tensor

  /// Factor i of the source runs along dimension axes[i] of the local tensor; -1: it has one index in
  /// source_box.
  std::vector<int> axes;

  /// Indices of that dimension from one index of factor i to the next; at least 1. Empty: 1 for all.
  Shape steps;

  bool operator==(const Transfer&) const = default;
};

/// The shape that source_box is a box of.
inline const Shape& seen_shape(const Transfer& transfer, const SourceTensor& source) {
  return transfer.source_view.empty() ? source.shape : transfer.source_view;
}

/// The shape that scale_box is a box of, in a tensor (or chunk) of scales.
Shape seen_scale_shape(const Transfer& transfer, const SourceTensor& scales);

/// Whether scales in such blocks can be seen in a view of the weight's.
bool can_see_scales(const Encoding& encoding, const Shape& view, const Shape& weight_shape);

/// The scales that a transfer reads, of the tensor (or chunk) that has them.
Lattice scale_lattice(const Transfer& transfer, const SourceTensor& scales);

/// The elements of the source tensor that a transfer reads. Its source_view must be one of that tensor.
Lattice read_lattice(const Transfer& transfer, const SourceTensor& source);

/// The elements of the destination's local tensor that a transfer writes.
Lattice written_lattice(const Transfer& transfer);

/// Elements from one index of each factor to the next in a tensor of these strides; 0 for one without an
/// axis.
Shape strides_along(const Lattice& lattice, const Shape& tensor_strides);

/// The scales that a part of a transfer's source box needs, in the coordinates of its scale_box. The transfer
/// must be block-scaled.
Box scale_box_of_part(const Transfer& transfer, const Box& part);

/// How the dimensions of a tensor are factored in a view of these sizes; nothing if it is no view of it.
std::optional<View> view_with(const Shape& sizes, const Shape& shape);

}  // namespace shardwright
