#include "planner/geometry/correspondence.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <string>
#include <utility>

namespace shardwright {

std::string fault_of(const Correspondence& of) {
  if (of.axes.size() != of.hf_view.sizes.size()) return "expected an axis for each factor of the HF view";
  if (!lies_inside(of.hf_box, of.hf_view.sizes))
    return "the HF box " + to_string(of.hf_box) + " leaves its view";
  if (!lies_inside(of.native_box, of.native_view.sizes))
    return "the native box " + to_string(of.native_box) + " leaves its view";
  std::vector<bool> taken(of.native_view.sizes.size(), false);
  for (std::size_t i = 0; i < of.axes.size(); ++i) {
    const int axis = of.axes[i];
    if (axis < 0) {
      if (of.hf_box.size[i] != 1) return "factor " + std::to_string(i) + " of the HF view has no partner";
      continue;
    }
    const auto partner = static_cast<std::size_t>(axis);
    if (partner >= taken.size() || taken[partner]) return "two factors of the HF view have one partner";
    taken[partner] = true;
    if (of.native_box.size[partner] != of.hf_box.size[i]) return "two partners have boxes of different sizes";
  }
  for (std::size_t i = 0; i < taken.size(); ++i) {
    if (!taken[i] && of.native_box.size[i] != 1)
      return "factor " + std::to_string(i) + " of the native view has no partner";
  }
  return "";
}

namespace {

/// Joins factor i of a view with the next one, which is of the same dimension.
void join_with_next(View& view, Box& box, std::size_t i) {
  const auto at = static_cast<std::ptrdiff_t>(i);
  box.offset[i + 1] += box.offset[i] * view.sizes[i + 1];
  view.sizes[i + 1] *= view.sizes[i];
  view.sizes.erase(view.sizes.begin() + at);
  view.dimensions.erase(view.dimensions.begin() + at);
  box.offset.erase(box.offset.begin() + at);
  box.size.erase(box.size.begin() + at);
}

/// The outermost factor of one index that has a factor within it; nothing if there is none.
std::optional<std::size_t> joinable(const View& view, const Box& box) {
  for (std::size_t i = 0; i + 1 < view.sizes.size(); ++i) {
    if (box.size[i] == 1 && view.dimensions[i] == view.dimensions[i + 1]) return i;
  }
  return std::nullopt;
}

}  // namespace

Simplified simplified(const Correspondence& of) {
  Simplified result{of, std::vector<int>(of.native_view.sizes.size()), Shape(of.native_view.sizes.size(), 1)};
  std::iota(result.native_factors.begin(), result.native_factors.end(), 0);
  Correspondence& simple = result.correspondence;
  while (const auto i = joinable(simple.hf_view, simple.hf_box)) {
    join_with_next(simple.hf_view, simple.hf_box, *i);
    simple.axes.erase(simple.axes.begin() + static_cast<std::ptrdiff_t>(*i));
  }
  while (const auto i = joinable(simple.native_view, simple.native_box)) {
    const int factor = static_cast<int>(*i);
    for (std::size_t from = 0; from < result.native_factors.size(); ++from) {
      if (result.native_factors[from] == factor)
        result.native_steps[from] *= simple.native_view.sizes[*i + 1];
      if (result.native_factors[from] > factor) --result.native_factors[from];
    }
    for (int& axis : simple.axes) {
      if (axis == factor) {
        axis = -1;
      } else if (axis > factor) {
        --axis;
      }
    }
    join_with_next(simple.native_view, simple.native_box, *i);
  }
  return result;
}

Box hull_of(const View& view, const Box& box) {
  Box hull{index_in_tensor(view, box.offset), {}};
  Shape last = box.offset;
  for (std::size_t i = 0; i < last.size(); ++i) last[i] += box.size[i] - 1;
  hull.size = index_in_tensor(view, last);
  for (std::size_t d = 0; d < hull.size.size(); ++d) hull.size[d] += 1 - hull.offset[d];
  if (is_empty(box)) hull.size.assign(hull.size.size(), 0);
  return hull;
}

std::vector<Placed> placed_in(const Correspondence& of, const Box& native) {
  return placed_in(of, of.native_box, native);
}

namespace {

/// Where both tensors are seen as they are: one box.
std::vector<Placed> placed_plainly(const Correspondence& of, const Box& native_box, const Box& native) {
  if (!intersects(native_box, native)) return {};
  std::vector<Placed> placed(1);
  Placed& one = placed.front();
  Lattice& in_native = one.in_native;
  one.hf_box = of.hf_box;
  in_native.axes = of.axes;
  in_native.steps.assign(of.axes.size(), 1);
  const auto begin = [&](std::size_t d) { return std::max(native_box.offset[d], native.offset[d]); };
  in_native.first.resize(native.offset.size());
  for (std::size_t d = 0; d < native.offset.size(); ++d) in_native.first[d] = begin(d) - native.offset[d];
  for (std::size_t i = 0; i < of.axes.size(); ++i) {
    if (of.axes[i] < 0) continue;
    const auto d = static_cast<std::size_t>(of.axes[i]);
    one.hf_box.offset[i] += begin(d) - native_box.offset[d];
    one.hf_box.size[i] =
        std::min(native_box.offset[d] + native_box.size[d], native.offset[d] + native.size[d]) - begin(d);
  }
  in_native.sizes = one.hf_box.size;
  return placed;
}

}  // namespace

std::vector<Placed> placed_in(const Correspondence& of, const Box& native_box, const Box& native) {
  if (is_plain(of.native_view)) return placed_plainly(of, native_box, native);
  const Shape steps = steps_of(of.native_view);
  std::vector<Placed> placed;
  for (const Box& within : boxes_in_view(of.native_view, native)) {
    const Box common = intersection(native_box, within);
    if (is_empty(common)) continue;
    Placed one{of.hf_box, {index_in_tensor(of.native_view, common.offset), {}, {}, {}}};
    for (std::size_t d = 0; d < native.offset.size(); ++d) one.in_native.first[d] -= native.offset[d];
    for (std::size_t i = 0; i < of.axes.size(); ++i) {
      if (of.axes[i] < 0) {
        one.in_native.axes.push_back(-1);
        one.in_native.steps.push_back(1);
        continue;
      }
      const auto partner = static_cast<std::size_t>(of.axes[i]);
      one.hf_box.offset[i] += common.offset[partner] - native_box.offset[partner];
      one.hf_box.size[i] = common.size[partner];
      one.in_native.axes.push_back(of.native_view.dimensions[partner]);
      one.in_native.steps.push_back(steps[partner]);
    }
    one.in_native.sizes = one.hf_box.size;
    placed.push_back(std::move(one));
  }
  return placed;
}

}  // namespace shardwright
