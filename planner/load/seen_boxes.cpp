#include "planner/load/seen_boxes.h"

#include <cstddef>
#include <cstdint>
#include <utility>

namespace shardwright {
namespace {

/// The factors of a view that are of one dimension, [first, last), and whether the chunk is seen in them.
struct Factors {
  std::size_t first;
  std::size_t last;
  bool are_kept;
};

std::vector<Factors> factors_of(const View& view, const Shape& steps, const SourceTensor& chunk,
                                bool in_own_shape) {
  std::vector<Factors> all;
  for (std::size_t first = 0, d = 0; d < chunk.shape.size(); ++d) {
    std::size_t last = first;
    while (last < view.dimensions.size() && view.dimensions[last] == static_cast<int>(d)) ++last;
    const std::int64_t period = steps[first];
    all.push_back(
        {first, last, !in_own_shape && chunk.offset[d] % period == 0 && chunk.shape[d] % period == 0});
    first = last;
  }
  return all;
}

/// The part of a placed box that `part`, a box inside of it, is.
Placed part_of(const Placed& all, const Box& part) {
  Placed placed{part, all.in_native};
  placed.in_native.sizes = part.size;
  for (std::size_t i = 0; i < part.size.size(); ++i) {
    if (placed.in_native.axes[i] < 0) continue;
    placed.in_native.first[static_cast<std::size_t>(placed.in_native.axes[i])] +=
        (part.offset[i] - all.hf_box.offset[i]) * placed.in_native.steps[i];
  }
  return placed;
}

std::vector<Placed> each_index_of(std::size_t factor, const std::vector<Placed>& boxes) {
  std::vector<Placed> each;
  for (const Placed& all : boxes) {
    Box one = all.hf_box;
    one.size[factor] = 1;
    for (std::int64_t i = 0; i < all.hf_box.size[factor]; ++i, ++one.offset[factor])
      each.push_back(part_of(all, one));
  }
  return each;
}

SeenBox seen(const SourceTensor& chunk, const View& view, const Shape& steps,
             const std::vector<Factors>& dimensions, const Placed& placed) {
  SeenBox seen{{}, {}, {placed.in_native.first, {}, {}, {}}};
  const auto add = [&](std::int64_t size, std::int64_t offset, std::size_t factor) {
    seen.view.push_back(size);
    seen.box.offset.push_back(offset);
    seen.box.size.push_back(placed.hf_box.size[factor]);
    seen.in_native.axes.push_back(placed.in_native.axes[factor]);
    seen.in_native.steps.push_back(placed.in_native.steps[factor]);
  };
  for (std::size_t d = 0; d < dimensions.size(); ++d) {
    const auto [first, last, are_kept] = dimensions[d];
    if (are_kept) {
      add(chunk.shape[d] / steps[first], placed.hf_box.offset[first] - chunk.offset[d] / steps[first], first);
      for (std::size_t i = first + 1; i < last; ++i) add(view.sizes[i], placed.hf_box.offset[i], i);
      continue;
    }
    std::int64_t offset = -chunk.offset[d];
    for (std::size_t i = first; i < last; ++i) offset += placed.hf_box.offset[i] * steps[i];
    add(chunk.shape[d], offset, last - 1);
  }
  seen.in_native.sizes = seen.box.size;
  if (seen.view == chunk.shape) seen.view.clear();
  return seen;
}

/// Of a tensor that is seen as it is.
std::vector<SeenBox> seen_plainly(const SourceTensor& chunk, Placed placed) {
  bool is_inside = true;
  for (std::size_t d = 0; d < chunk.offset.size(); ++d)
    is_inside = is_inside && placed.hf_box.offset[d] >= chunk.offset[d] &&
                placed.hf_box.offset[d] + placed.hf_box.size[d] <= chunk.offset[d] + chunk.shape[d];
  if (!is_inside) {
    const Box common = intersection(placed.hf_box, {chunk.offset, chunk.shape});
    if (is_empty(common)) return {};
    placed = part_of(placed, common);
  }
  for (std::size_t d = 0; d < chunk.offset.size(); ++d) placed.hf_box.offset[d] -= chunk.offset[d];
  std::vector<SeenBox> seen(1);
  seen.front().box = std::move(placed.hf_box);
  seen.front().in_native = std::move(placed.in_native);
  return seen;
}

}  // namespace

std::vector<SeenBox> seen_in(const SourceTensor& chunk, const View& hf_view, Placed placed,
                             bool in_own_shape) {
  if (is_plain(hf_view)) return seen_plainly(chunk, std::move(placed));
  const Shape steps = steps_of(hf_view);
  const std::vector<Factors> dimensions = factors_of(hf_view, steps, chunk, in_own_shape);
  std::vector<SeenBox> all;
  for (const Box& of_chunk : boxes_in_view(hf_view, Box{chunk.offset, chunk.shape})) {
    const Box common = intersection(placed.hf_box, of_chunk);
    if (is_empty(common)) continue;
    std::vector<Placed> parts{part_of(placed, common)};
    for (const Factors& factors : dimensions) {
      for (std::size_t i = factors.first; !factors.are_kept && i + 1 < factors.last; ++i)
        parts = each_index_of(i, parts);
    }
    for (const Placed& part : parts) all.push_back(seen(chunk, hf_view, steps, dimensions, part));
  }
  return all;
}

}  // namespace shardwright
