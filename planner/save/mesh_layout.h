#pragma once

#include <cstdint>
#include <vector>

#include "planner/save/save_wire.h"

namespace shardwright {

/// How tensors of one shape and placement lie on a mesh. A class is the places that hold the same boxes.
struct MeshLayout {
  Chunking chunks;
  std::vector<std::vector<std::uint32_t>> places;  ///< of each class, ascending
  std::vector<std::uint32_t> boxes;                ///< of each class, how many
  std::vector<std::int64_t> elements;              ///< of each class
};

/// Takes time linear in the places of the mesh, but for sorting the chunks.
MeshLayout layout_on_mesh(const SavedValues& values, const SavedValue& value);

}  // namespace shardwright
