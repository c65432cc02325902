#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"

namespace shardwright {

struct Lattice;  // planner/geometry/lattice.h
struct View;     // planner/geometry/view.h

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

/// The same of each of them.
std::vector<Lattice> lattices_written(std::span<const Transfer> transfers);

/// Elements from one index of each factor to the next in a tensor of these strides; 0 for one without an
/// axis.
Shape strides_along(const Lattice& lattice, const Shape& tensor_strides);

/// The scales that a part of a transfer's source box needs, in the coordinates of its scale_box. The transfer
/// must be block-scaled.
Box scale_box_of_part(const Transfer& transfer, const Box& part);

/// How the dimensions of a tensor are factored in a view of these sizes; nothing if it is no view of it.
std::optional<View> view_with(const Shape& sizes, const Shape& shape);

/// How the transfers, all to one destination, fail to write each element of its local tensor once, for
/// messages; empty if they do write it. They must lie inside.
std::string fault_of_writing(const Shape& local_shape, std::span<const Transfer> transfers);

/// Puts the transfers of a plan in the order of the files and fills in its figures.
void order_and_count(LoadPlan& plan, const std::vector<TensorSpec>& specs, const Catalog& catalog);

}  // namespace shardwright
