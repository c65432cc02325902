#pragma once

#include <cstdint>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// What a transfer needs of one stored tensor, for readers that know nothing but tensors and boxes: torch's,
/// say.
struct ReadItem {
  enum class Part : std::uint8_t { elements, scales, global };

  std::uint32_t transfer = 0;  ///< index into LoadPlan::transfers
  Part part = Part::elements;
  std::uint32_t tensor = 0;  ///< index into Catalog::tensors
  Box box;                   ///< of that tensor (or chunk), in the shape, bytes and words that the file has
};

/// The smallest box of a source (of its elements, scales or global scale), in its own shape as it is seen,
/// that holds all that the transfer needs and is whole in the file.
Box needed_box(const Transfer& transfer, ReadItem::Part part, const Catalog& catalog);

/// All items of a plan. Scales come first: whatever has to wait for its other half is then small.
std::vector<ReadItem> read_items(const LoadPlan& plan, const Catalog& catalog);

}  // namespace shardwright
