#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner/handover/refit_plan.h"
#include "planner/load/load_plan.h"
#include "storage/handover/refit.h"
#include "storage/rounded_up.h"

namespace shardwright {

// Where the elements of boxes lie: what is given, a message, in which a box is row-major, and an engine's
// tensor.

/// Bytes that a box takes in a message.
inline std::size_t padded(std::size_t bytes) { return rounded_up(bytes, alignment_in_message); }

/// A box that lies in what is given and in what is handed over.
struct CommonBox {
  Box box;                 ///< in the view of what is handed over
  std::int64_t first = 0;  ///< elements from the first one given to the box's first
  Shape strides;           ///< elements in what is given, from one index of the box to the next

  std::size_t elements() const { return static_cast<std::size_t>(volume(box.size)); }
};

/// Throws Error(mismatch), naming the tensor, where what is given is in another view than it was planned in.
std::vector<CommonBox> common_boxes(const GivenBytes& given, const ExportedBox& part, const Catalog& catalog);

/// Copies it to its place in a message, in which `part` begins at `to`.
void copy_into_message(const GivenBytes& given, const CommonBox& common, const ExportedBox& part,
                       const Catalog& catalog, std::byte* to);

/// Copies what has come for a need to its place in an engine's tensor. `transfer` is the need's.
void place_from_message(const ExportedBox& part, const std::byte* from, const Transfer& transfer,
                        const Catalog& catalog, const EngineMemory& memory);

}  // namespace shardwright
