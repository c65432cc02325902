#include "planner/tensor_spec.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace shardwright {
namespace {

/// The bytes of memory between a local tensor's first and last element.
struct MemoryRange {
  std::intptr_t begin;
  std::intptr_t end;
};

MemoryRange memory_range(const TensorSpec& spec) {
  const std::int64_t element = std::max(1, bytes_of(spec.dtype));
  MemoryRange range{reinterpret_cast<std::intptr_t>(spec.data), reinterpret_cast<std::intptr_t>(spec.data) + element};
  for (std::size_t d = 0; d < spec.local_shape.size(); ++d) {
    const std::int64_t reach = (spec.local_shape[d] - 1) * spec.local_strides[d] * element;
    (reach < 0 ? range.begin : range.end) += reach;
  }
  return range;
}

/// Calls `visit` with the address of every element.
template <typename Visit>
void for_each_element(const TensorSpec& spec, const Visit& visit) {
  const std::int64_t element = std::max(1, bytes_of(spec.dtype));
  Shape index(spec.local_shape.size(), 0);
  std::intptr_t address = reinterpret_cast<std::intptr_t>(spec.data);
  for (std::int64_t remaining = volume(spec.local_shape); remaining > 0; --remaining) {
    visit(address, element);
    for (std::size_t d = index.size(); d-- > 0;) {
      address += spec.local_strides[d] * element;
      if (++index[d] < spec.local_shape[d]) break;
      address -= spec.local_shape[d] * spec.local_strides[d] * element;
      index[d] = 0;
    }
  }
}

/// Marks the bytes of the elements in `written`, whose bit 0 stands for address `origin`; false if one was marked
/// already. Addresses outside the map are passed over.
bool mark(const TensorSpec& spec, std::intptr_t origin, std::vector<bool>& written) {
  bool fresh = true;
  for_each_element(spec, [&](std::intptr_t address, std::int64_t element) {
    for (std::int64_t byte = 0; byte < element; ++byte) {
      const std::intptr_t bit = address + byte - origin;
      if (bit < 0 || bit >= static_cast<std::intptr_t>(written.size())) continue;
      if (written[static_cast<std::size_t>(bit)]) fresh = false;
      written[static_cast<std::size_t>(bit)] = true;
    }
  });
  return fresh;
}

/// True if the strides alone show that no two elements share memory: each stride is longer than everything that the
/// smaller ones can reach. Holds for every view that slicing and transposing make of a contiguous tensor.
bool strides_are_nested(const TensorSpec& spec) {
  std::vector<std::pair<std::int64_t, std::int64_t>> dimensions;
  for (std::size_t d = 0; d < spec.local_shape.size(); ++d) {
    if (spec.local_shape[d] > 1) dimensions.emplace_back(std::abs(spec.local_strides[d]), spec.local_shape[d]);
  }
  std::sort(dimensions.begin(), dimensions.end());
  std::int64_t reach = 1;
  for (const auto& [stride, size] : dimensions) {
    if (stride < reach) return false;
    reach = stride * (size - 1) + reach;
  }
  return true;
}

bool shares_memory_with_itself(const TensorSpec& spec) {
  if (volume(spec.local_shape) == 0 || strides_are_nested(spec)) return false;
  for (std::size_t d = 0; d < spec.local_shape.size(); ++d) {
    if (spec.local_shape[d] > 1 && spec.local_strides[d] == 0) return true;
  }
  const MemoryRange range = memory_range(spec);
  std::vector<bool> written(static_cast<std::size_t>(range.end - range.begin), false);
  return !mark(spec, range.begin, written);
}

/// Exact: interleaved views of one buffer, such as its left and its right columns, have ranges that overlap but no
/// element in common.
bool share_memory(const TensorSpec& a, const TensorSpec& b) {
  const MemoryRange range_a = memory_range(a);
  const MemoryRange range_b = memory_range(b);
  const std::intptr_t begin = std::max(range_a.begin, range_b.begin);
  const std::intptr_t end = std::min(range_a.end, range_b.end);
  if (begin >= end) return false;
  std::vector<bool> written(static_cast<std::size_t>(end - begin), false);
  mark(a, begin, written);
  return !mark(b, begin, written);
}

}  // namespace

TensorSpec whole_tensor(std::string fqn, DType dtype, const Shape& shape, void* data) {
  return sharded_tensor(std::move(fqn), dtype, shape, {}, {}, {}, data);
}

TensorSpec sharded_tensor(std::string fqn, DType dtype, const Shape& global_shape, const Shape& mesh_shape,
                          const Shape& coordinate, const std::vector<Placement>& placements, void* data) {
  TensorSpec spec;
  spec.fqn = std::move(fqn);
  spec.dtype = dtype;
  spec.global_shape = global_shape;
  spec.local_shape = local_shape(global_shape, mesh_shape, coordinate, placements);
  spec.local_strides = contiguous_strides(spec.local_shape);
  spec.data = data;
  spec.boxes = local_boxes(global_shape, mesh_shape, coordinate, placements);
  return spec;
}

std::string fault_of(const TensorSpec& spec) {
  const std::size_t rank = spec.global_shape.size();
  if (spec.local_shape.size() != rank || spec.local_strides.size() != rank) {
    return "its local shape " + to_string(spec.local_shape) + " does not have the rank of its global shape " +
           to_string(spec.global_shape);
  }
  if (spec.device == DeviceKind::meta) {
    return "it is on the meta device and has no memory; materialise it first, as with to_empty(device=...)";
  }
  if (spec.device != DeviceKind::cpu) {
    return "it is on device " + spec.device_name + ", which this build cannot write to; only cpu";
  }
  std::vector<Box> locals;
  for (const LocalBox& box : spec.boxes) {
    if (box.global.size.size() != rank || intersection(box.global, whole(spec.global_shape)) != box.global) {
      return "its part " + to_string(box.global) + " leaves the global shape " + to_string(spec.global_shape);
    }
    locals.push_back({box.local_offset, box.global.size});
    if (intersection(locals.back(), whole(spec.local_shape)) != locals.back()) {
      return "its part " + to_string(box.global) + " does not fit into the local shape " + to_string(spec.local_shape);
    }
  }
  if (std::string fault = tiling_fault(whole(spec.local_shape), std::move(locals)); !fault.empty()) {
    return "its placement does not account for the local tensor of shape " + to_string(spec.local_shape) + ": " + fault;
  }
  if (shares_memory_with_itself(spec)) {
    return "several of its elements share memory (shape " + to_string(spec.local_shape) + ", strides " +
           to_string(spec.local_strides) + "), as in an expanded view; load into a tensor of its own";
  }
  return "";
}

std::vector<std::string> shared_memory(const std::vector<TensorSpec>& specs) {
  std::vector<std::pair<MemoryRange, const TensorSpec*>> ranges;
  for (const TensorSpec& spec : specs) {
    if (spec.data != nullptr && volume(spec.local_shape) > 0) ranges.emplace_back(memory_range(spec), &spec);
  }
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) { return a.first.begin < b.first.begin; });
  std::vector<std::string> faults;
  std::vector<std::pair<MemoryRange, const TensorSpec*>> open;  // those that reach the one in hand
  for (const auto& [range, spec] : ranges) {
    std::erase_if(open, [&](const auto& earlier) { return earlier.first.end <= range.begin; });
    for (const auto& [earlier_range, earlier] : open) {
      if (share_memory(*earlier, *spec)) {
        faults.push_back(earlier->fqn + " and " + spec->fqn +
                         " share memory; a load writes each element once, so pass one of the two");
      }
    }
    open.emplace_back(range, spec);
  }
  return faults;
}

}  // namespace shardwright
