#include "planner/names/axis_text.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <set>
#include <utility>
#include <vector>

namespace shardwright {
namespace {

bool is_whole(const RecordedPart& part, const PartFactor& factor) {
  return factor.begin == 0 && factor.extent == size_of(part, factor);
}

/// Whether each dimension is one axis, all of it, at the same place on both sides.
bool is_identity(const RecordedPart& part) {
  return part.there == part.here && std::ranges::all_of(part.here, [&](const auto& factors) {
           return factors.size() == 1 && factors[0].axis >= 0 && is_whole(part, factors[0]);
         });
}

using Neighbours = std::set<std::pair<int, int>>;

/// Axes of which one runs directly within the other, over all of its factor.
Neighbours neighbours(const RecordedPart& part, const PartSide& side) {
  Neighbours found;
  for (const auto& factors : side) {
    for (std::size_t i = 1; i < factors.size(); ++i) {
      if (factors[i - 1].axis >= 0 && factors[i].axis >= 0 && is_whole(part, factors[i]))
        found.emplace(factors[i - 1].axis, factors[i].axis);
    }
  }
  return found;
}

/// Makes one axis of two that are neighbours on both sides. False if there are none.
bool join_neighbours(RecordedPart& part) {
  const Neighbours here = neighbours(part, part.here);
  for (const auto& [outer, inner] : neighbours(part, part.there)) {
    if (!here.contains({outer, inner})) continue;
    const std::int64_t size = part.axes[static_cast<std::size_t>(inner)];
    for (PartSide* side : {&part.there, &part.here}) {
      for (auto& factors : *side) {
        const auto found = std::ranges::find(factors, inner, &PartFactor::axis);
        if (found == factors.end()) continue;
        (found - 1)->begin *= size;
        (found - 1)->extent *= size;
        factors.erase(found);
      }
    }
    part.axes[static_cast<std::size_t>(outer)] *= size;
    return true;
  }
  return false;
}

/// Makes indices of axes of size 1, but for those that are all there is to a dimension: of these another
/// model may have more.
void fix_ones(RecordedPart& part) {
  std::set<int> kept;
  for (const PartSide* side : {&part.there, &part.here}) {
    for (const auto& factors : *side) {
      if (factors.size() == 1) kept.insert(factors[0].axis);
    }
  }
  for (PartSide* side : {&part.there, &part.here}) {
    for (auto& factors : *side) {
      for (PartFactor& factor : factors) {
        if (size_of(part, factor) == 1 && !kept.contains(factor.axis)) factor.axis = -1;
      }
      std::erase_if(factors, [](const PartFactor& factor) { return factor.axis < 0 && factor.extent == 1; });
    }
  }
}

/// The axes of `among`, in the order of a side.
std::vector<int> order_of(const PartSide& side, const std::set<int>& among) {
  std::vector<int> order;
  for (const auto& factors : side) {
    for (const PartFactor& factor : factors) {
      if (among.contains(factor.axis)) order.push_back(factor.axis);
    }
  }
  return order;
}

/// Axes that have to be numbers: of those of a dimension, one may be of unknown size.
std::set<int> numbered_axes(const RecordedPart& part) {
  std::set<int> numbered;
  for (const PartSide* side : {&part.there, &part.here}) {
    for (const auto& factors : *side) {
      std::vector<int> unknown;
      for (const PartFactor& factor : factors) {
        if (factor.axis >= 0 && !numbered.contains(factor.axis)) unknown.push_back(factor.axis);
      }
      const auto longest = std::ranges::max_element(
          unknown, {}, [&](int axis) { return part.axes[static_cast<std::size_t>(axis)]; });
      for (auto axis = unknown.begin(); axis != unknown.end(); ++axis) {
        if (axis != longest) numbered.insert(*axis);
      }
    }
  }
  return numbered;
}

using NamesOfAxes = std::map<int, std::string>;

/// A letter for each HF dimension; where several axes share one, numbers behind it.
NamesOfAxes names_of(const RecordedPart& part, Sizes& sizes) {
  static const std::map<std::size_t, std::string> usual{{1, "o"}, {2, "oi"}, {3, "eoi"}};
  const auto letters = usual.find(part.there.size());
  NamesOfAxes names;
  for (std::size_t d = 0; d < part.there.size(); ++d) {
    const std::string letter(1, letters != usual.end()
                                    ? letters->second[d]
                                    : static_cast<char>('a' + std::min<std::size_t>(d, 25)));
    std::vector<int> axes;
    for (const PartFactor& factor : part.there[d]) {
      if (factor.axis >= 0) axes.push_back(factor.axis);
    }
    for (std::size_t i = 0; i < axes.size(); ++i)
      names[axes[i]] = axes.size() == 1 ? letter : letter + std::to_string(i + 1);
  }
  const std::set<int> numbered = numbered_axes(part);
  for (const int axis : numbered) {
    const std::int64_t size = part.axes[static_cast<std::size_t>(axis)];
    std::set<int> alike;
    for (const int other : numbered) {
      if (part.axes[static_cast<std::size_t>(other)] == size) alike.insert(other);
    }
    if (order_of(part.there, alike) == order_of(part.here, alike)) {
      names[axis] = std::to_string(size);  // of equal numbers, the first is the other side's first
    } else {
      names[axis] += "_" + std::to_string(size);
      sizes[names[axis]] = size;
    }
  }
  return names;
}

std::vector<std::string> words_of(const RecordedPart& part, const PartFactor& factor,
                                  const NamesOfAxes& names) {
  const auto fraction = [](std::int64_t index, std::int64_t of) {
    return std::to_string(index) + "/" + std::to_string(of);
  };
  if (factor.axis < 0) return {fraction(factor.begin, factor.extent)};
  const std::string& name = names.at(factor.axis);
  const std::int64_t size = size_of(part, factor);
  if (is_whole(part, factor)) return {name};
  if (factor.begin % size == 0 && factor.extent % size == 0)
    return {fraction(factor.begin / size, factor.extent / size), name};
  const std::int64_t after = factor.extent - factor.begin - size;
  return {(factor.begin > 0 ? std::to_string(factor.begin) + "|" : "") + "[" + name + "]" +
          (after > 0 ? "|" + std::to_string(after) : "")};
}

std::string side_text(const RecordedPart& part, const PartSide& side, const NamesOfAxes& names) {
  std::string text;
  for (const auto& factors : side) {
    std::string words;
    std::size_t count = 0;
    for (const PartFactor& factor : factors) {
      for (const std::string& word : words_of(part, factor, names)) {
        words += (words.empty() ? "" : " ") + word;
        ++count;
      }
    }
    if (count == 0) words = "1";
    if (count > 1 || words.find('|') != std::string::npos) words = "(" + words + ")";
    text += (text.empty() ? "" : " ") + words;
  }
  return text;
}

}  // namespace

AxisText axis_text(RecordedPart part) {
  do {
    while (join_neighbours(part)) continue;
    fix_ones(part);
  } while (join_neighbours(part));
  if (is_identity(part)) return {};
  AxisText result;
  const NamesOfAxes names = names_of(part, result.sizes);
  result.text = side_text(part, part.there, names) + " -> " + side_text(part, part.here, names);
  return result;
}

}  // namespace shardwright
