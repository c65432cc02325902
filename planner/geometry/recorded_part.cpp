#include "planner/geometry/recorded_part.h"

#include <algorithm>
#include <deque>
#include <utility>

namespace shardwright {
namespace {

std::string text_of(const Shape& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "[" + text + "]";
}

/// How many indices the factors have together, from one of them on.
std::int64_t extent_of(const std::vector<PartFactor>& factors, std::size_t from = 0) {
  std::int64_t extent = 1;
  for (std::size_t i = from; i < factors.size(); ++i) extent *= factors[i].extent;
  return extent;
}

struct Found {
  std::vector<PartFactor>& factors;
  std::vector<PartFactor>::iterator factor;
};

/// The factor of the source that runs along an axis.
Found in_source(RecordedPart& part, int axis) {
  for (std::vector<PartFactor>& factors : part.there) {
    const auto found = std::ranges::find(factors, axis, &PartFactor::axis);
    if (found != factors.end()) return {factors, found};
  }
  throw std::logic_error("a part has an axis that its source lacks");
}

/// Leaves of a factor's axis only the index at `index` of the tensor's factor.
void fix(RecordedPart& part, const PartFactor& factor, std::int64_t index) {
  if (factor.axis < 0) return;
  PartFactor& there = *in_source(part, factor.axis).factor;
  there.begin += index - factor.begin;
  there.axis = -1;
}

/// A factor of the tensor as two: one of `outer_extent` indices, and within it the rest.
std::pair<PartFactor, PartFactor> split(RecordedPart& part, const PartFactor& factor,
                                        std::int64_t outer_extent) {
  const std::int64_t inner_extent = factor.extent / outer_extent;
  const std::int64_t index = factor.begin / inner_extent;
  const std::int64_t start = factor.begin % inner_extent;
  const std::int64_t size = size_of(part, factor);
  if (start + size <= inner_extent)  // within one index of the outer factor
    return {{-1, index, outer_extent}, {factor.axis, start, inner_extent}};
  if (start != 0 || size % inner_extent != 0)
    throw NoBox("reshapes a part of a dimension into factors of " + std::to_string(inner_extent) +
                ", which it does not fill");
  const auto [factors, there] = in_source(part, factor.axis);
  if (there->begin % inner_extent != 0 || there->extent % inner_extent != 0)
    throw NoBox("reshapes a part of a dimension at " + std::to_string(there->begin) + " of " +
                std::to_string(there->extent) + " by " + std::to_string(inner_extent));
  const int inner = static_cast<int>(part.axes.size());
  part.axes.push_back(inner_extent);
  part.axes[static_cast<std::size_t>(factor.axis)] = size / inner_extent;
  there->begin /= inner_extent;
  there->extent /= inner_extent;
  factors.insert(there + 1, PartFactor{inner, 0, inner_extent});
  return {{factor.axis, index, outer_extent}, {inner, 0, inner_extent}};
}

}  // namespace

RecordedPart whole_part(std::string source, const Shape& shape) {
  RecordedPart part{std::move(source), shape, {}, {}};
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] < 1) throw std::invalid_argument(part.source + ": expected elements, found none");
    part.there.push_back({PartFactor{static_cast<int>(d), 0, shape[d]}});
  }
  part.here = part.there;
  return part;
}

std::int64_t size_of(const RecordedPart& part, const PartFactor& factor) {
  return factor.axis < 0 ? 1 : part.axes[static_cast<std::size_t>(factor.axis)];
}

std::int64_t elements_of(const RecordedPart& part) {
  std::int64_t elements = 1;
  for (const std::vector<PartFactor>& factors : part.here) {
    for (const PartFactor& factor : factors) elements *= size_of(part, factor);
  }
  return elements;
}

RecordedPart joined(RecordedPart part, std::size_t dimension, std::int64_t begin, std::int64_t total) {
  std::vector<PartFactor>& factors = part.here.at(dimension);
  if (factors.empty()) factors.push_back({});
  const std::int64_t inner = extent_of(factors, 1);
  if (begin % inner != 0 || total % inner != 0)
    throw NoBox("joins parts at " + std::to_string(begin) + " of " + std::to_string(total) +
                ", across factors of " + std::to_string(inner));
  factors.front().begin += begin / inner;
  factors.front().extent = total / inner;
  return part;
}

std::optional<RecordedPart> narrowed(RecordedPart part, std::size_t dimension, std::int64_t begin,
                                     std::int64_t end) {
  if (begin >= end) return std::nullopt;
  std::vector<PartFactor>& factors = part.here.at(dimension);
  while (!factors.empty()) {
    PartFactor& first = factors.front();
    const std::int64_t inner = extent_of(factors, 1);
    const std::int64_t size = size_of(part, first);
    if (begin % inner == 0 && end % inner == 0) {
      const std::int64_t low = begin / inner;
      const std::int64_t high = end / inner;
      const std::int64_t start = std::max(low, first.begin);
      const std::int64_t stop = std::min(high, first.begin + size);
      if (start >= stop) return std::nullopt;
      if (first.axis >= 0) {
        in_source(part, first.axis).factor->begin += start - first.begin;
        part.axes[static_cast<std::size_t>(first.axis)] = stop - start;
      }
      first.begin = start - low;
      first.extent = high - low;
      return part;
    }
    const std::int64_t index = begin / inner;
    if ((end - 1) / inner != index)
      throw NoBox("cuts " + std::to_string(begin) + " to " + std::to_string(end) +
                  " of a dimension across factors of " + std::to_string(inner));
    if (index < first.begin || index >= first.begin + size) return std::nullopt;
    fix(part, first, index);
    factors.erase(factors.begin());
    begin -= index * inner;
    end -= index * inner;
  }
  return part;
}

RecordedPart permuted(RecordedPart part, const std::vector<std::size_t>& order) {
  PartSide here;
  for (const std::size_t dimension : order) here.push_back(part.here.at(dimension));
  part.here = std::move(here);
  return part;
}

RecordedPart reshaped(RecordedPart part, const Shape& shape) {
  std::deque<PartFactor> left;
  for (const std::vector<PartFactor>& factors : part.here)
    left.insert(left.end(), factors.begin(), factors.end());
  PartSide here;
  for (const std::int64_t size : shape) {
    std::vector<PartFactor>& taken = here.emplace_back();
    for (std::int64_t filled = 1; filled < size; filled *= taken.back().extent) {
      if (left.empty()) throw NoBox("reshapes to " + text_of(shape) + ", which has other elements");
      PartFactor factor = left.front();
      left.pop_front();
      const std::int64_t wanted = size / filled;
      if (size % filled != 0 || (factor.extent > wanted && factor.extent % wanted != 0))
        throw NoBox("reshapes to " + text_of(shape) + ", across a factor of " +
                    std::to_string(factor.extent));
      if (factor.extent > wanted) {
        const auto [outer, inner] = split(part, factor, wanted);
        left.push_front(inner);
        factor = outer;
      }
      taken.push_back(factor);
    }
  }
  for (const PartFactor& factor : left) {
    if (factor.extent != 1) throw NoBox("reshapes to " + text_of(shape) + ", which has other elements");
    fix(part, factor, 0);
  }
  part.here = std::move(here);
  return part;
}

}  // namespace shardwright
