#include "planner/names/spec_parts.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>

namespace shardwright {

bool holds(const TensorSpec& spec, const Box& box) {
  return std::any_of(spec.boxes.begin(), spec.boxes.end(),
                     [&](const LocalBox& local) { return intersection(local.global, box) == box; });
}

TensorSpec part_of(const TensorSpec& spec, const Box& box) {
  for (const LocalBox& local : spec.boxes) {
    if (intersection(local.global, box) != box) continue;
    TensorSpec part = spec;
    part.local_shape = box.size;
    std::int64_t offset = 0;
    for (std::size_t d = 0; d < box.size.size(); ++d) {
      offset += (local.local_offset[d] + box.offset[d] - local.global.offset[d]) * spec.local_strides[d];
    }
    if (part.data != nullptr) part.data = static_cast<std::byte*>(part.data) + offset * bytes_of(spec.dtype);
    part.boxes = {{box, Shape(box.size.size(), 0)}};
    return part;
  }
  throw std::logic_error(spec.fqn + ": this rank does not hold " + to_string(box));
}

}  // namespace shardwright
