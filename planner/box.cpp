#include "planner/box.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <queue>

namespace shardwright {

std::int64_t volume(const Shape& size) {
  std::int64_t product = 1;
  for (std::int64_t extent : size) product *= extent;
  return product;
}

Box whole(const Shape& shape) { return {Shape(shape.size(), 0), shape}; }

Box intersection(const Box& a, const Box& b) {
  Box common{Shape(a.offset.size()), Shape(a.offset.size())};
  for (std::size_t d = 0; d < a.offset.size(); ++d) {
    const std::int64_t begin = std::max(a.offset[d], b.offset[d]);
    const std::int64_t end = std::min(a.offset[d] + a.size[d], b.offset[d] + b.size[d]);
    common.offset[d] = begin;
    common.size[d] = std::max<std::int64_t>(0, end - begin);
  }
  return common;
}

bool is_empty(const Box& box) {
  return std::any_of(box.size.begin(), box.size.end(), [](std::int64_t extent) { return extent == 0; });
}

namespace {

using ConstBoxIterator = std::vector<Box>::const_iterator;

/// How many elements of `box` are in none of the boxes [first, last).
std::int64_t volume_outside(Box box, ConstBoxIterator first, ConstBoxIterator last) {
  for (; first != last; ++first) {
    const Box common = intersection(box, *first);
    if (is_empty(common)) continue;
    // Slabs of `box` before and after the common part, dimension by dimension, until only that is left.
    std::int64_t outside = 0;
    for (std::size_t d = 0; d < box.size.size(); ++d) {
      Box slab = box;
      slab.size[d] = common.offset[d] - box.offset[d];
      if (slab.size[d] > 0) outside += volume_outside(slab, first + 1, last);
      slab.offset[d] = common.offset[d] + common.size[d];
      slab.size[d] = box.offset[d] + box.size[d] - slab.offset[d];
      if (slab.size[d] > 0) outside += volume_outside(slab, first + 1, last);
      box.offset[d] = common.offset[d];
      box.size[d] = common.size[d];
    }
    return outside;
  }
  return volume(box.size);
}

}  // namespace

std::int64_t union_volume(const std::vector<Box>& boxes) {
  std::int64_t sum = 0;
  for (auto box = boxes.begin(); box != boxes.end(); ++box) sum += volume_outside(*box, boxes.begin(), box);
  return sum;
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= shape[d];
  }
  return strides;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (std::size_t d = 0; d < shape.size(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(shape[d]);
  }
  return text + "]";
}

std::string to_string(const Box& box) {
  std::string text = "[";
  for (std::size_t d = 0; d < box.size.size(); ++d) {
    text += (d == 0 ? "" : ", ") + std::to_string(box.offset[d]) + ":" +
            std::to_string(box.offset[d] + box.size[d]);
  }
  return text + "]";
}

namespace {

using Overlap = std::optional<std::pair<Box, Box>>;
using BoxIterator = std::vector<Box>::iterator;

std::int64_t end_of(const Box& box, std::size_t d) { return box.offset[d] + box.size[d]; }

/// Dimensions along which the boxes are not all alike.
std::vector<std::size_t> cut_dimensions(BoxIterator first, BoxIterator last) {
  std::vector<std::size_t> cut;
  for (std::size_t d = 0; d < first->size.size(); ++d) {
    if (std::any_of(first, last, [&](const Box& box) {
          return box.offset[d] != first->offset[d] || box.size[d] != first->size[d];
        })) {
      cut.push_back(d);
    }
  }
  return cut;
}

/// Moves a line along dimension `along`. The boxes under it are apart along dimension `across`, as no other
/// one cuts them, so that a new box can only overlap its neighbours there.
Overlap overlap_by_sweep(BoxIterator first, BoxIterator last, std::size_t along, std::size_t across) {
  std::sort(first, last, [&](const Box& a, const Box& b) { return a.offset[along] < b.offset[along]; });
  std::map<std::int64_t, BoxIterator> under_the_line;  // by where they begin across
  const auto ends_later = [&](BoxIterator a, BoxIterator b) { return end_of(*a, along) > end_of(*b, along); };
  std::priority_queue<BoxIterator, std::vector<BoxIterator>, decltype(ends_later)> next_to_end(ends_later);
  for (auto box = first; box != last; ++box) {
    while (!next_to_end.empty() && end_of(*next_to_end.top(), along) <= box->offset[along]) {
      under_the_line.erase(next_to_end.top()->offset[across]);
      next_to_end.pop();
    }
    const auto after = under_the_line.lower_bound(box->offset[across]);
    if (after != under_the_line.end() && after->first < end_of(*box, across))
      return std::pair{*after->second, *box};
    if (after != under_the_line.begin()) {
      const BoxIterator before = std::prev(after)->second;
      if (end_of(*before, across) > box->offset[across]) return std::pair{*before, *box};
    }
    under_the_line.emplace_hint(after, box->offset[across], box);
    next_to_end.push(box);
  }
  return std::nullopt;
}

/// Compares each box with those that reach it along dimension 0.
Overlap overlap_by_pairs(BoxIterator first, BoxIterator last) {
  std::sort(first, last, [](const Box& a, const Box& b) { return a.offset[0] < b.offset[0]; });
  std::vector<BoxIterator> open;
  for (auto box = first; box != last; ++box) {
    std::erase_if(open, [&](BoxIterator other) { return end_of(*other, 0) <= box->offset[0]; });
    for (const BoxIterator other : open) {
      if (!is_empty(intersection(*box, *other))) return std::pair{*other, *box};
    }
    open.push_back(box);
  }
  return std::nullopt;
}

/// Sweeps where at most two dimensions are cut. Else sorts along each dimension in turn and recurses into the
/// clusters that the dimension separates; only what no dimension separates is compared pair by pair, which in
/// a grid is nothing.
Overlap find_overlap(BoxIterator first, BoxIterator last) {
  if (last - first < 2) return std::nullopt;
  const std::vector<std::size_t> cut = cut_dimensions(first, last);
  if (cut.empty()) return std::pair{first[0], first[1]};
  if (cut.size() <= 2) return overlap_by_sweep(first, last, cut.front(), cut.back());
  const std::size_t rank = first->size.size();
  for (std::size_t d = 0; d < rank; ++d) {
    std::sort(first, last, [d](const Box& a, const Box& b) { return a.offset[d] < b.offset[d]; });
    std::vector<BoxIterator> cluster_starts{first};
    std::int64_t reached = first->offset[d] + first->size[d];
    for (auto box = first + 1; box != last; ++box) {
      if (box->offset[d] >= reached) cluster_starts.push_back(box);
      reached = std::max(reached, box->offset[d] + box->size[d]);
    }
    if (cluster_starts.size() == 1) continue;
    cluster_starts.push_back(last);
    for (std::size_t c = 0; c + 1 < cluster_starts.size(); ++c) {
      if (Overlap found = find_overlap(cluster_starts[c], cluster_starts[c + 1])) return found;
    }
    return std::nullopt;
  }
  return overlap_by_pairs(first, last);
}

}  // namespace

Overlap overlap(std::vector<Box> boxes) {
  std::erase_if(boxes, [](const Box& box) { return is_empty(box); });
  return find_overlap(boxes.begin(), boxes.end());
}

std::string tiling_fault(const Box& region, std::vector<Box> boxes) {
  std::erase_if(boxes, [](const Box& box) { return is_empty(box); });
  if (is_empty(region)) return boxes.empty() ? "" : "something is written to an empty region";
  if (const Overlap twice = find_overlap(boxes.begin(), boxes.end())) {
    return "elements " + to_string(intersection(twice->first, twice->second)) + " are written twice";
  }
  const std::int64_t covered =
      std::accumulate(boxes.begin(), boxes.end(), std::int64_t{0},
                      [](std::int64_t sum, const Box& box) { return sum + volume(box.size); });
  const std::int64_t wanted = volume(region.size);
  if (covered == wanted) return "";
  return std::to_string(wanted - covered) + " of " + std::to_string(wanted) + " elements of " +
         to_string(region) + " have no source";
}

}  // namespace shardwright
