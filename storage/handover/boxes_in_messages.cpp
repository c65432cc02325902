#include "storage/handover/boxes_in_messages.h"

#include <optional>
#include <utility>

#include "kernels/copy.h"
#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/geometry/lattice.h"
#include "planner/geometry/view.h"
#include "planner/load/transfers.h"
#include "storage/boxes/placing.h"

namespace shardwright {
namespace {

/// Integers of an element's size: bytes are moved, not numbers.
DType moved_as(std::int64_t element_bytes) {
  switch (element_bytes) {
    case 2:
      return DType::U16;
    case 4:
      return DType::U32;
    case 8:
      return DType::U64;
    default:
      return DType::U8;
  }
}

void copy_elements(const std::vector<CopiedDimension>& dimensions, std::int64_t element_bytes,
                   const std::byte* from, std::byte* to) {
  copy_box(dimensions, moved_as(element_bytes), moved_as(element_bytes), from, to);
}

}  // namespace

std::vector<CommonBox> common_boxes(const GivenBytes& given, const ExportedBox& part,
                                    const Catalog& catalog) {
  std::vector<CommonBox> found;
  if (given.part.view == part.view) {
    CommonBox common{intersection(given.part.box, part.box), 0, given.strides};
    if (is_empty(common.box)) return found;
    for (std::size_t d = 0; d < common.box.size.size(); ++d)
      common.first += (common.box.offset[d] - given.part.box.offset[d]) * given.strides[d];
    found.push_back(std::move(common));
    return found;
  }
  // The engine sees it in a view of the plain box that is given: see handed_boxes().
  const SourceTensor& tensor = catalog.tensors[part.tensor];
  const std::optional<View> view = view_with(part.view, in_units(tensor.dtype, tensor.shape));
  if (!view || !given.part.view.empty())
    throw Error(ErrorKind::mismatch, stored_name(tensor) + ": has been encoded in another view than planned");
  for (const Box& within : boxes_in_view(*view, given.part.box)) {
    CommonBox common{intersection(within, part.box), 0, {}};
    if (is_empty(common.box)) continue;
    const Lattice lattice = lattice_of(*view, common.box);
    common.strides = strides_along(lattice, given.strides);
    for (std::size_t d = 0; d < lattice.first.size(); ++d)
      common.first += (lattice.first[d] - given.part.box.offset[d]) * given.strides[d];
    found.push_back(std::move(common));
  }
  return found;
}

void copy_into_message(const GivenBytes& given, const CommonBox& common, const ExportedBox& part,
                       const Catalog& catalog, std::byte* to) {
  const std::int64_t element_bytes = unit_bytes(catalog.tensors[part.tensor].dtype);
  const Shape packed = contiguous_strides(part.box.size);
  std::int64_t first = 0;
  for (std::size_t d = 0; d < packed.size(); ++d)
    first += (common.box.offset[d] - part.box.offset[d]) * packed[d];
  copy_elements(copied_dimensions(common.box.size, common.strides, packed), element_bytes,
                given.bytes + common.first * element_bytes, to + first * element_bytes);
}

void place_from_message(const ExportedBox& part, const std::byte* from, const Transfer& transfer,
                        const Catalog& catalog, const EngineMemory& memory) {
  const SourceTensor& tensor = catalog.tensors[part.tensor];
  const std::int64_t element_bytes = unit_bytes(tensor.dtype);
  Shape steps;  // elements of memory, from one index of the need's box to the next
  for (std::size_t i = 0; i < transfer.axes.size(); ++i) {
    const int axis = transfer.axes[i];
    steps.push_back(axis < 0 ? 0
                             : (transfer.steps.empty() ? 1 : transfer.steps[i]) *
                                   memory.strides[static_cast<std::size_t>(axis)]);
  }
  Shape strides = steps;
  Shape begin = part.box.offset;
  if (part.view != transfer.source_view) {  // the trainer sees it in a view
    const std::optional<View> view = view_with(part.view, in_units(tensor.dtype, tensor.shape));
    const Lattice lattice = lattice_of(view.value(), part.box);
    strides = strides_along(lattice, steps);
    begin = lattice.first;
  }
  std::int64_t first = elements_to(transfer.destination_offset, memory.strides);
  for (std::size_t d = 0; d < begin.size(); ++d)
    first += (begin[d] - transfer.source_box.offset[d]) * steps[d];
  const Shape packed = contiguous_strides(part.box.size);
  std::byte* const to = memory.data + first * element_bytes;
  const std::vector<CopiedDimension> dimensions = copied_dimensions(part.box.size, packed, strides);
  if (is_one_run(dimensions)) return copy_from_memory(from, bytes_of_part(part, catalog), to);
  copy_elements(dimensions, element_bytes, from, to);
}

}  // namespace shardwright
