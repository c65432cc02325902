#include "planner/box.h"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

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

Overlap overlap_by_pairs(BoxIterator first, BoxIterator last) {
  for (auto a = first; a != last; ++a) {
    for (auto b = a + 1; b != last; ++b) {
      if (!is_empty(intersection(*a, *b))) return std::pair{*a, *b};
    }
  }
  return std::nullopt;
}

/// Sorts along each dimension in turn and recurses into the clusters that the dimension separates. Only what
/// no dimension separates is compared pair by pair, which in a grid is nothing.
Overlap find_overlap(BoxIterator first, BoxIterator last) {
  if (last - first < 2) return std::nullopt;
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

std::string tiling_fault(const Box& region, std::vector<Box> boxes) {
  std::erase_if(boxes, [](const Box& box) { return is_empty(box); });
  if (is_empty(region)) return boxes.empty() ? "" : "something is written to an empty region";
  if (Overlap overlap = find_overlap(boxes.begin(), boxes.end())) {
    return "elements " + to_string(intersection(overlap->first, overlap->second)) + " are written twice";
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
