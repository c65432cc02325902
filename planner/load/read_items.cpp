#include "planner/load/read_items.h"

#include "planner/geometry/lattice.h"
#include "planner/load/transfers.h"
#include "planner/names/packed_weights.h"

namespace shardwright {
namespace {

std::int64_t tensor_of(const Transfer& transfer, ReadItem::Part part) {
  if (part == ReadItem::Part::elements) return transfer.source;
  return part == ReadItem::Part::scales ? transfer.scales : transfer.global;
}

/// From the first index to the last along each dimension.
Box hull_of(const Lattice& lattice) {
  Box hull{lattice.first, Shape(lattice.first.size(), 1)};
  for (std::size_t i = 0; i < lattice.axes.size(); ++i) {
    if (lattice.axes[i] >= 0)
      hull.size[static_cast<std::size_t>(lattice.axes[i])] += (lattice.sizes[i] - 1) * lattice.steps[i];
  }
  return hull;
}

}  // namespace

Box needed_box(const Transfer& transfer, ReadItem::Part part, const Catalog& catalog) {
  const SourceTensor& tensor = catalog.tensors[static_cast<std::size_t>(tensor_of(transfer, part))];
  if (part == ReadItem::Part::global) return whole(tensor.shape);
  const Lattice needed =
      part == ReadItem::Part::elements ? read_lattice(transfer, tensor) : scale_lattice(transfer, tensor);
  return whole_in_file(tensor, hull_of(needed));
}

std::vector<ReadItem> read_items(const LoadPlan& plan, const Catalog& catalog) {
  std::vector<ReadItem> items;
  for (const auto part : {ReadItem::Part::global, ReadItem::Part::scales, ReadItem::Part::elements}) {
    for (std::uint32_t t = 0; t < plan.transfers.size(); ++t) {
      const Transfer& transfer = plan.transfers[t];
      const std::int64_t tensor = tensor_of(transfer, part);
      if (tensor < 0) continue;
      const Box needed = needed_box(transfer, part, catalog);
      items.push_back({t, part, static_cast<std::uint32_t>(tensor),
                       box_in_file(catalog.tensors[static_cast<std::size_t>(tensor)], needed)});
    }
  }
  return items;
}

}  // namespace shardwright
