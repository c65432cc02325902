#include "planner/view.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

namespace shardwright {
namespace {

/// A range of each factor of one dimension.
using Ranges = Box;

/// Prepends one index, or a range of indices, of the factor that is the next one out.
void add_with_outer(std::int64_t offset, std::int64_t size, std::vector<Ranges> inner,
                    std::vector<Ranges>& all) {
  for (Ranges& ranges : inner) {
    ranges.offset.insert(ranges.offset.begin(), offset);
    ranges.size.insert(ranges.size.begin(), size);
    all.push_back(std::move(ranges));
  }
}

/// [begin, end) of a dimension of the factors [first, last): what is left of its first index of the outermost
/// factor, the whole indices, and the beginning of its last one.
std::vector<Ranges> ranges_of(std::int64_t begin, std::int64_t end, Shape::const_iterator first,
                              Shape::const_iterator last) {
  if (begin >= end) return {};
  if (last - first == 1) return {{{begin}, {end - begin}}};
  const std::int64_t inner = std::accumulate(first + 1, last, std::int64_t{1}, std::multiplies<>());
  std::vector<Ranges> all;
  std::int64_t whole = begin / inner;
  const std::int64_t last_whole = end / inner;
  if (begin % inner != 0 || whole == last_whole) {
    const std::int64_t until = whole == last_whole ? end % inner : inner;
    add_with_outer(whole, 1, ranges_of(begin % inner, until, first + 1, last), all);
    if (whole == last_whole) return all;
    ++whole;
  }
  if (whole < last_whole) {
    Ranges ranges{Shape(static_cast<std::size_t>(last - first), 0), Shape(first, last)};
    ranges.offset[0] = whole;
    ranges.size[0] = last_whole - whole;
    all.push_back(std::move(ranges));
  }
  if (end % inner != 0) add_with_outer(last_whole, 1, ranges_of(0, end % inner, first + 1, last), all);
  return all;
}

}  // namespace

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

std::vector<Box> boxes_in_view(const View& view, const Box& box) {
  if (is_plain(view)) return {box};
  std::vector<Box> boxes{{{}, {}}};
  for (std::size_t first = 0, last = 0, d = 0; first < view.sizes.size(); first = last, ++d) {
    while (last < view.sizes.size() && view.dimensions[last] == view.dimensions[first]) ++last;
    const auto begin = view.sizes.begin();
    const std::vector<Ranges> along =
        ranges_of(box.offset[d], box.offset[d] + box.size[d], begin + static_cast<std::ptrdiff_t>(first),
                  begin + static_cast<std::ptrdiff_t>(last));
    std::vector<Box> longer;
    for (const Box& outer : boxes) {
      for (const Ranges& ranges : along) {
        Box& one = longer.emplace_back(outer);
        one.offset.insert(one.offset.end(), ranges.offset.begin(), ranges.offset.end());
        one.size.insert(one.size.end(), ranges.size.begin(), ranges.size.end());
      }
    }
    boxes = std::move(longer);
  }
  return boxes;
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
