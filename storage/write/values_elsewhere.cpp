#include "storage/write/values_elsewhere.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "storage/rounded_up.h"

namespace shardwright {
namespace {

/// Rows of a matrix that are never parted: as many as the largest block has.
constexpr std::int64_t rows_together = 128;

/// A part of a spec without memory.
TensorSpec part_elsewhere(const TensorSpec& spec, const Box& box) {
  TensorSpec part = whole_tensor(spec.fqn, spec.dtype, box.size);
  part.global_shape = spec.global_shape;
  part.boxes = {{box, Shape(box.size.size(), 0)}};
  return part;
}

/// Cuts a spec of one box along rows, or further out, into parts of so many bytes.
void cut_into_parts(const TensorSpec& spec, std::size_t bytes, std::vector<TensorSpec>& parts) {
  const Box& box = spec.boxes.front().global;
  const std::int64_t all = volume(box.size) * bytes_of(spec.dtype);
  std::size_t d = 0;
  while (d + 2 < box.size.size() && box.size[d] == 1) ++d;
  const std::int64_t grid = d + 2 == box.size.size() ? rows_together : 1;
  if (all <= static_cast<std::int64_t>(bytes) || box.size.empty() || box.size[d] <= grid) {
    parts.push_back(spec);
    return;
  }
  std::int64_t strip = static_cast<std::int64_t>(bytes) / std::max<std::int64_t>(1, all / box.size[d]);
  strip = std::max(grid, strip - strip % grid);
  for (std::int64_t done = 0; done < box.size[d]; done += strip) {
    Box part = box;
    part.offset[d] += done;
    part.size[d] = std::min(strip, box.size[d] - done);
    cut_into_parts(part_elsewhere(spec, part), bytes, parts);
  }
}

}  // namespace

void for_each_batch(const std::vector<TensorSpec>& specs, const ValuesElsewhere& values,
                    const std::function<void(const std::vector<TensorSpec>&)>& use) {
  std::vector<TensorSpec> parts;
  for (const TensorSpec& spec : specs) {
    for (const LocalBox& box : spec.boxes)
      cut_into_parts(part_elsewhere(spec, box.global), values.bytes_at_once, parts);
  }
  constexpr std::size_t alignment = 64;
  const auto room_for = [&](const TensorSpec& spec) {
    return rounded_up(static_cast<std::size_t>(volume(spec.local_shape) * bytes_of(spec.dtype)), alignment);
  };
  std::vector<std::byte> memory;
  for (std::size_t first = 0; first < parts.size();) {
    std::size_t end = first;
    std::size_t bytes = 0;
    while (end < parts.size() && (end == first || bytes + room_for(parts[end]) <= values.bytes_at_once))
      bytes += room_for(parts[end++]);
    if (memory.size() < bytes) {
      std::vector<std::byte>().swap(memory);  // before there is the other one
      memory.resize(bytes);
    }
    std::vector<TensorSpec> batch(parts.begin() + static_cast<std::ptrdiff_t>(first),
                                  parts.begin() + static_cast<std::ptrdiff_t>(end));
    std::byte* next = memory.data();
    for (TensorSpec& part : batch) {
      part.data = next;
      next += room_for(part);
    }
    values.fill(batch);
    use(batch);
    first = end;
  }
}

}  // namespace shardwright
