#include "planner/correspondence.h"

#include <algorithm>
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

std::vector<Placed> placed_in(const Correspondence& of, const Box& native) {
  const Shape steps = steps_of(of.native_view);
  std::vector<Placed> placed;
  for (const Box& within : boxes_in_view(of.native_view, native)) {
    const Box common = intersection(of.native_box, within);
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
      one.hf_box.offset[i] += common.offset[partner] - of.native_box.offset[partner];
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
