#include "storage/boxes/place_items.h"

#include <cstring>
#include <string>

#include "planner/error.h"
#include "planner/geometry/byte_boxes.h"
#include "planner/geometry/lattice.h"
#include "planner/load/transfers.h"
#include "storage/boxes/placing.h"
#include "storage/boxes/scale_checks.h"

namespace shardwright {
namespace {

/// Where a lattice lies in memory that holds a box around it, with a stride for each factor.
StridedMemory in_box(const std::byte* memory, const Box& box, const Lattice& lattice, DType dtype) {
  const Shape strides = contiguous_strides(box.size);
  Shape from_box = lattice.first;
  for (std::size_t d = 0; d < from_box.size(); ++d) from_box[d] -= box.offset[d];
  return {memory + bytes_to(dtype, elements_to(from_box, strides)), strides_along(lattice, strides)};
}

}  // namespace

void place_items(const Transfer& transfer, const Catalog& catalog, const ItemsInMemory& items,
                 const TensorSpec& destination) {
  if (destination.device != DeviceKind::cpu) {
    throw Error(ErrorKind::argument,
                destination.fqn + ": is on " + destination.device_name +
                    ", where only shardwright's own storage readers write; load with one of them");
  }
  const SourceTensor& source = catalog.tensors[transfer.source];
  BoxInMemory part{transfer.source_box,
                   in_box(items.elements, needed_box(transfer, ReadItem::Part::elements, catalog),
                          read_lattice(transfer, source), source.dtype)};
  if (transfer.scales >= 0) {
    const SourceTensor& tensor = catalog.tensors[static_cast<std::size_t>(transfer.scales)];
    part.scales = in_box(items.scales, needed_box(transfer, ReadItem::Part::scales, catalog),
                         scale_lattice(transfer, tensor), tensor.dtype);
    expect_meant_scales(transfer, part, catalog);
  }
  if (transfer.global >= 0) {
    std::memcpy(&part.global, items.global, sizeof part.global);
    const SourceTensor& global = catalog.tensors[static_cast<std::size_t>(transfer.global)];
    const std::string fault = fault_of_global(part.global, transfer.encoding.product, global, catalog);
    if (!fault.empty()) throw Error(ErrorKind::mismatch, fault);
  }
  place_box(transfer, source.dtype, part, destination);
}

}  // namespace shardwright
