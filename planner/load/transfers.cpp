#include "planner/load/transfers.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <string_view>
#include <utility>

#include "planner/geometry/byte_boxes.h"
#include "planner/geometry/lattice.h"
#include "planner/geometry/view.h"
#include "planner/names/encodings.h"

namespace shardwright {
namespace {

/// What a transfer without steps writes.
Box written_box(const Transfer& transfer) {
  Box box{transfer.destination_offset, Shape(transfer.destination_offset.size(), 1)};
  for (std::size_t i = 0; i < transfer.axes.size(); ++i) {
    if (transfer.axes[i] >= 0)
      box.size[static_cast<std::size_t>(transfer.axes[i])] *= transfer.source_box.size[i];
  }
  return box;
}

}  // namespace

Lattice read_lattice(const Transfer& transfer, const SourceTensor& source) {
  if (transfer.source_view.empty()) return lattice_of(transfer.source_box);
  return lattice_of(*view_with(transfer.source_view, source.shape), transfer.source_box);
}

Lattice written_lattice(const Transfer& transfer) {
  const Shape steps = transfer.steps.empty() ? Shape(transfer.axes.size(), 1) : transfer.steps;
  return {transfer.destination_offset, transfer.source_box.size, transfer.axes, steps};
}

std::vector<Lattice> lattices_written(std::span<const Transfer> transfers) {
  std::vector<Lattice> written;
  written.reserve(transfers.size());
  for (const Transfer& transfer : transfers) written.push_back(written_lattice(transfer));
  return written;
}

Shape strides_along(const Lattice& lattice, const Shape& tensor_strides) {
  Shape strides;
  strides.reserve(lattice.axes.size());
  for (std::size_t i = 0; i < lattice.axes.size(); ++i) {
    strides.push_back(lattice.axes[i] < 0
                          ? 0
                          : lattice.steps[i] * tensor_strides[static_cast<std::size_t>(lattice.axes[i])]);
  }
  return strides;
}

Box scale_box_of_part(const Transfer& transfer, const Box& box) {
  Box in_blocks = box;  // counted from the first block of the transfer's scale box
  const std::size_t rank = box.offset.size();
  for (std::size_t d = 0; d < rank; ++d) in_blocks.offset[d] -= transfer.source_box.offset[d];
  in_blocks.offset[rank - 2] += transfer.first_row_in_block;
  in_blocks.offset[rank - 1] += transfer.first_column_in_block;
  Box scales = scale_box_of(transfer.encoding, in_blocks);
  for (std::size_t d = 0; d < scales.offset.size(); ++d) scales.offset[d] += transfer.scale_box.offset[d];
  return scales;
}

bool can_see_scales(const Encoding& encoding, const Shape& view, const Shape& weight_shape) {
  return encoding.block_rows == 1 && !view.empty() && view.back() == weight_shape.back() &&
         encoding.scale_rank == static_cast<int>(weight_shape.size());
}

Shape seen_scale_shape(const Transfer& transfer, const SourceTensor& scales) {
  if (transfer.source_view.empty()) return scales.shape;
  Shape shape = transfer.source_view;
  shape.back() = scales.shape.back();
  return shape;
}

Lattice scale_lattice(const Transfer& transfer, const SourceTensor& scales) {
  if (transfer.source_view.empty()) return lattice_of(transfer.scale_box);
  return lattice_of(*view_with(seen_scale_shape(transfer, scales), scales.shape), transfer.scale_box);
}

std::optional<View> view_with(const Shape& sizes, const Shape& shape) {
  View view;
  std::size_t factor = 0;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    std::int64_t size = 1;
    const std::size_t first = factor;
    // Factors of 1 go to the dimension that is not full yet, or to the last.
    while (factor < sizes.size() && (factor == first || size < shape[d] || d + 1 == shape.size())) {
      const std::int64_t next = sizes[factor];
      if (next < 1 || next > shape[d] / size) return std::nullopt;
      size *= next;
      view.sizes.push_back(next);
      view.dimensions.push_back(static_cast<int>(d));
      ++factor;
    }
    if (factor == first || size != shape[d]) return std::nullopt;
  }
  return factor == sizes.size() ? std::optional(view) : std::nullopt;
}

void order_and_count(LoadPlan& plan, const std::vector<TensorSpec>& specs, const Catalog& catalog) {
  std::stable_sort(plan.transfers.begin(), plan.transfers.end(), [&](const Transfer& a, const Transfer& b) {
    const SourceTensor& left = catalog.tensors[a.source];
    const SourceTensor& right = catalog.tensors[b.source];
    return std::pair{left.file, left.begin} < std::pair{right.file, right.begin};
  });
  std::vector<std::vector<Box>> needed(catalog.tensors.size());
  std::map<std::uint32_t, std::vector<Lattice>> needed_in_views;
  for (const Transfer& transfer : plan.transfers) {
    const SourceTensor& source = catalog.tensors[transfer.source];
    if (transfer.source_view.empty()) {
      needed[transfer.source].push_back(in_units(source.dtype, transfer.source_box));
    } else {
      needed_in_views[transfer.source].push_back(in_units(source.dtype, read_lattice(transfer, source)));
    }
    if (transfer.global >= 0) {
      const auto global = static_cast<std::size_t>(transfer.global);
      needed[global] = {whole(catalog.tensors[global].shape)};
    }
    if (transfer.scales >= 0) {
      const auto scales = static_cast<std::uint32_t>(transfer.scales);
      if (transfer.source_view.empty()) {
        needed[scales].push_back(transfer.scale_box);
      } else {
        needed_in_views[scales].push_back(scale_lattice(transfer, catalog.tensors[scales]));
      }
    }
    plan.bytes_written += static_cast<std::uint64_t>(volume(transfer.source_box.size) *
                                                     bytes_of(specs[transfer.destination].dtype));
  }
  for (const std::uint32_t zero : plan.zeros)
    plan.bytes_written +=
        static_cast<std::uint64_t>(volume(specs[zero].local_shape) * bytes_of(specs[zero].dtype));
  std::string_view previous;
  for (std::size_t t = 0; t < needed.size(); ++t) {
    const auto in_views = needed_in_views.find(static_cast<std::uint32_t>(t));
    if (needed[t].empty() && in_views == needed_in_views.end()) continue;
    const SourceTensor& tensor = catalog.tensors[t];
    std::int64_t elements = 0;
    if (in_views == needed_in_views.end()) {
      elements = union_volume(needed[t]);
    } else {
      for (const Box& box : needed[t]) in_views->second.push_back(lattice_of(box));
      elements = union_volume(in_units(tensor.dtype, tensor.shape), in_views->second);
    }
    plan.bytes_needed += static_cast<std::uint64_t>(elements * unit_bytes(tensor.dtype));
    if (tensor.name != previous) ++plan.tensors;
    previous = tensor.name;
  }
}

std::string fault_of_writing(const Shape& local_shape, std::span<const Transfer> transfers) {
  if (std::all_of(transfers.begin(), transfers.end(),
                  [](const Transfer& transfer) { return transfer.steps.empty(); })) {
    std::vector<Box> written;
    written.reserve(transfers.size());
    for (const Transfer& transfer : transfers) written.push_back(written_box(transfer));
    return tiling_fault(whole(local_shape), std::move(written));
  }
  return tiling_fault(local_shape, lattices_written(transfers));
}

}  // namespace shardwright
