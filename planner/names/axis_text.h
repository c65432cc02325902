#pragma once

#include <string>

#include "planner/geometry/recorded_part.h"
#include "planner/names/axis_expression.h"

namespace shardwright {

struct AxisText {
  std::string text;  ///< an axis expression; empty: the source is the tensor
  Sizes sizes;       ///< of the axes that have neither number nor shape
};

/// The axis expression of a part whose source is the HF tensor, in as few factors as can be.
AxisText axis_text(RecordedPart part);

}  // namespace shardwright
