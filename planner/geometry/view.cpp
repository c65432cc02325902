#include "planner/geometry/view.h"

#include <numeric>

namespace shardwright {
View plain_view(const Shape& shape) {
  View view{shape, std::vector<int>(shape.size())};
  std::iota(view.dimensions.begin(), view.dimensions.end(), 0);
  return view;
}

bool is_plain(const View& view) {
  return view.dimensions.empty() || view.dimensions.back() + 1 == static_cast<int>(view.dimensions.size());
}

Shape tensor_shape(const View& view) {
  Shape shape(view.dimensions.empty() ? 0 : static_cast<std::size_t>(view.dimensions.back()) + 1, 1);
  for (std::size_t i = 0; i < view.sizes.size(); ++i)
    shape[static_cast<std::size_t>(view.dimensions[i])] *= view.sizes[i];
  return shape;
}

Shape steps_of(const View& view) {
  Shape steps(view.sizes.size(), 1);
  for (std::size_t i = view.sizes.size(); i-- > 1;) {
    if (view.dimensions[i - 1] == view.dimensions[i]) steps[i - 1] = steps[i] * view.sizes[i];
  }
  return steps;
}

Shape index_in_tensor(const View& view, const Shape& index) {
  const Shape steps = steps_of(view);
  Shape in_tensor(tensor_shape(view).size(), 0);
  for (std::size_t i = 0; i < index.size(); ++i)
    in_tensor[static_cast<std::size_t>(view.dimensions[i])] += index[i] * steps[i];
  return in_tensor;
}

std::string to_string(const View& view) {
  std::string text;
  for (std::size_t i = 0; i < view.sizes.size(); ++i) {
    const bool begins = i == 0 || view.dimensions[i - 1] != view.dimensions[i];
    if (i > 0) text += begins ? ") " : " ";
    text += (begins ? "(" : "") + std::to_string(view.sizes[i]);
  }
  return text.empty() ? text : text + ")";
}

}  // namespace shardwright
