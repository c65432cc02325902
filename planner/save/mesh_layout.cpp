#include "planner/save/mesh_layout.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "planner/save/chunks.h"

namespace shardwright {
namespace {

Chunking sorted(const std::vector<std::int64_t>& corners, std::size_t rank) {
  Chunking chunking{static_cast<std::uint32_t>(rank), {}};
  if (rank == 0) return chunking;
  const std::size_t step = 2 * rank;
  std::vector<const std::int64_t*> order;
  for (std::size_t i = 0; i < corners.size(); i += step) order.push_back(&corners[i]);
  std::sort(order.begin(), order.end(),
            [&](const auto* a, const auto* b) { return comes_before(a, b, rank); });
  chunking.corners.reserve(corners.size());
  for (const std::int64_t* at : order) chunking.corners.insert(chunking.corners.end(), at, at + step);
  return chunking;
}

}  // namespace

MeshLayout layout_on_mesh(const SavedValues& values, const SavedValue& value) {
  MeshLayout layout;
  std::vector<std::int64_t> corners;  // of all chunks, not in order
  constexpr std::uint32_t none = std::numeric_limits<std::uint32_t>::max();
  std::vector<std::uint32_t> class_of_first(values.mesh_ranks.size(), none);
  Shape coordinate(values.mesh_shape.size(), 0);
  for (std::uint32_t place = 0; place < values.mesh_ranks.size(); ++place) {
    std::size_t first = 0;  // the place of the class that has no replica before it
    for (std::size_t m = 0; m < coordinate.size(); ++m) {
      const bool replicated = value.placements[m].kind == Placement::Kind::replicate;
      first = first * static_cast<std::size_t>(values.mesh_shape[m]) +
              (replicated ? 0 : static_cast<std::size_t>(coordinate[m]));
    }
    std::uint32_t& its_class = class_of_first[first];
    if (its_class == none) {
      its_class = static_cast<std::uint32_t>(layout.places.size());
      layout.places.emplace_back();
      std::int64_t elements = 0;
      const auto boxes = local_boxes(value.shape, values.mesh_shape, coordinate, value.placements);
      for (const LocalBox& box : boxes) {
        corners.insert(corners.end(), box.global.offset.begin(), box.global.offset.end());
        corners.insert(corners.end(), box.global.size.begin(), box.global.size.end());
        elements += volume(box.global.size);
      }
      layout.boxes.push_back(static_cast<std::uint32_t>(boxes.size()));
      layout.elements.push_back(elements);
    }
    layout.places[its_class].push_back(place);
    next_index(coordinate, values.mesh_shape);
  }
  layout.chunks = sorted(corners, value.shape.size());
  return layout;
}

}  // namespace shardwright
