#include "planner/names/tensor_spec.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace shardwright {
namespace {

/// Consecutive bytes of memory.
struct MemoryRange {
  std::intptr_t begin;
  std::intptr_t end;
};

/// The bytes between a local tensor's first and last element.
MemoryRange memory_range(const TensorSpec& spec) {
  const std::int64_t element = std::max(1, bytes_of(spec.dtype));
  MemoryRange range{reinterpret_cast<std::intptr_t>(spec.data),
                    reinterpret_cast<std::intptr_t>(spec.data) + element};
  for (std::size_t d = 0; d < spec.local_shape.size(); ++d) {
    const std::int64_t reach = (spec.local_shape[d] - 1) * spec.local_strides[d] * element;
    (reach < 0 ? range.begin : range.end) += reach;
  }
  return range;
}

/// The memory that a local tensor takes, as ranges in the order of addresses, and whether two of its elements
/// share some.
struct MemoryUse {
  std::vector<MemoryRange> ranges;
  bool shared = false;
};

MemoryUse memory_use(const TensorSpec& spec) {
  struct Dimension {
    std::int64_t stride;
    std::int64_t size;
    auto operator<=>(const Dimension&) const = default;
  };
  std::vector<Dimension> dimensions;
  for (std::size_t d = 0; d < spec.local_shape.size(); ++d) {
    if (spec.local_shape[d] > 1) dimensions.push_back({std::abs(spec.local_strides[d]), spec.local_shape[d]});
  }
  std::sort(dimensions.begin(), dimensions.end());

  // Dimensions without a gap make one range longer; each of the others repeats the ranges so far.
  MemoryUse use;
  const std::int64_t element = std::max(1, bytes_of(spec.dtype));
  std::int64_t length = 1;
  auto dimension = dimensions.begin();
  for (; dimension != dimensions.end() && dimension->stride <= length; ++dimension) {
    use.shared |= dimension->stride < length;
    length += dimension->stride * (dimension->size - 1);
  }
  const std::intptr_t begin = memory_range(spec).begin;
  use.ranges = {{begin, begin + length * element}};
  for (; dimension != dimensions.end(); ++dimension) {
    const std::size_t count = use.ranges.size();
    use.ranges.reserve(count * static_cast<std::size_t>(dimension->size));
    for (std::int64_t i = 1; i < dimension->size; ++i) {
      const std::int64_t distance = i * dimension->stride * element;
      for (std::size_t r = 0; r < count; ++r) {
        use.ranges.push_back({use.ranges[r].begin + distance, use.ranges[r].end + distance});
      }
    }
  }
  const auto by_begin = [](const MemoryRange& a, const MemoryRange& b) { return a.begin < b.begin; };
  if (!std::is_sorted(use.ranges.begin(), use.ranges.end(), by_begin)) {
    std::sort(use.ranges.begin(), use.ranges.end(), by_begin);
  }
  for (std::size_t r = 1; r < use.ranges.size(); ++r)
    use.shared |= use.ranges[r].begin < use.ranges[r - 1].end;
  return use;
}

/// True if the strides alone show that no two elements share memory: each stride is longer than everything
/// that the smaller ones can reach. Holds for every view that slicing and transposing make of a contiguous
/// tensor.
bool strides_are_nested(const TensorSpec& spec) {
  std::vector<std::pair<std::int64_t, std::int64_t>> dimensions;
  for (std::size_t d = 0; d < spec.local_shape.size(); ++d) {
    if (spec.local_shape[d] > 1)
      dimensions.emplace_back(std::abs(spec.local_strides[d]), spec.local_shape[d]);
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
  return volume(spec.local_shape) > 0 && !strides_are_nested(spec) && memory_use(spec).shared;
}

/// Exact: interleaved views of one buffer, such as its left and its right columns, have ranges that overlap
/// but no element in common.
bool share_memory(const TensorSpec& a, const TensorSpec& b) {
  const std::vector<MemoryRange> of_a = memory_use(a).ranges;
  const std::vector<MemoryRange> of_b = memory_use(b).ranges;
  std::intptr_t reached = of_a.front().begin;  // by the ranges of `a` that begin before the one of `b` ends
  std::size_t next = 0;
  for (const MemoryRange& range : of_b) {
    for (; next < of_a.size() && of_a[next].begin < range.end; ++next)
      reached = std::max(reached, of_a[next].end);
    if (next > 0 && reached > range.begin) return true;
  }
  return false;
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

std::string fault_of(const TensorSpec& spec, bool only_read) {
  const std::size_t rank = spec.global_shape.size();
  if (spec.local_shape.size() != rank || spec.local_strides.size() != rank) {
    return "its local shape " + to_string(spec.local_shape) + " does not have the rank of its global shape " +
           to_string(spec.global_shape);
  }
  if (spec.device == DeviceKind::meta) {
    return "it is on the meta device and has no memory; materialise it first, as with to_empty(device=...)";
  }
  if (spec.device == DeviceKind::other) {
    return "it is on device " + spec.device_name +
           ", which this build does not reach; use CPU memory, or, for a CUDA device, build "
           "Shardwright where there is nvcc";
  }
  std::vector<Box> locals;
  for (const LocalBox& box : spec.boxes) {
    if (box.global.offset.size() != rank || box.global.size.size() != rank ||
        box.local_offset.size() != rank) {
      return "one of its parts does not have the rank of its global shape " + to_string(spec.global_shape);
    }
    if (intersection(box.global, whole(spec.global_shape)) != box.global) {
      return "its part " + to_string(box.global) + " leaves the global shape " + to_string(spec.global_shape);
    }
    locals.push_back({box.local_offset, box.global.size});
    if (intersection(locals.back(), whole(spec.local_shape)) != locals.back()) {
      return "its part " + to_string(box.global) + " does not fit into the local shape " +
             to_string(spec.local_shape);
    }
  }
  if (std::string fault = tiling_fault(whole(spec.local_shape), std::move(locals)); !fault.empty()) {
    return "its placement does not account for the local tensor of shape " + to_string(spec.local_shape) +
           ": " + fault;
  }
  if (!only_read && shares_memory_with_itself(spec)) {
    return "several of its elements share memory (shape " + to_string(spec.local_shape) + ", strides " +
           to_string(spec.local_strides) + "), as in an expanded view; pass a tensor of its own";
  }
  return "";
}

bool touches(const TensorSpec& spec, const Box& box) {
  return std::any_of(spec.boxes.begin(), spec.boxes.end(),
                     [&](const LocalBox& local) { return intersects(local.global, box); });
}

std::vector<std::string> shared_memory(const std::vector<TensorSpec>& specs) {
  std::vector<const TensorSpec*> all;
  for (const TensorSpec& spec : specs) all.push_back(&spec);
  return shared_memory(std::span<const TensorSpec* const>(all));
}

std::vector<std::string> shared_memory(std::span<const TensorSpec* const> specs) {
  std::vector<std::pair<MemoryRange, const TensorSpec*>> ranges;
  for (const TensorSpec* spec : specs) {
    if (spec->local_strides.size() != spec->local_shape.size()) continue;  // a fault of its own
    if (spec->data != nullptr && volume(spec->local_shape) > 0)
      ranges.emplace_back(memory_range(*spec), spec);
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const auto& a, const auto& b) { return a.first.begin < b.first.begin; });
  std::vector<std::string> faults;
  std::vector<std::pair<MemoryRange, const TensorSpec*>> open;  // those that reach the one in hand
  for (const auto& [range, spec] : ranges) {
    std::erase_if(open, [&begin = range.begin](const auto& earlier) { return earlier.first.end <= begin; });
    for (const auto& [earlier_range, earlier] : open) {
      if (share_memory(*earlier, *spec)) {
        faults.push_back(earlier->fqn + " and " + spec->fqn +
                         " share memory; each element is written once, so pass one of the two");
      }
    }
    open.emplace_back(range, spec);
  }
  return faults;
}

}  // namespace shardwright
