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

bool equal_but_along(const Box& a, const Box& b, std::size_t along) {
  for (std::size_t d = 0; d < a.size.size(); ++d) {
    if (d != along && (a.offset[d] != b.offset[d] || a.size[d] != b.size[d])) return false;
  }
  return true;
}

/// Joins boxes that differ along one dimension only and touch or overlap there.
void join_along(std::vector<Box>& boxes, std::size_t along) {
  std::sort(boxes.begin(), boxes.end(), [along](const Box& a, const Box& b) {
    for (std::size_t d = 0; d < a.size.size(); ++d) {
      if (d == along) continue;
      if (a.offset[d] != b.offset[d]) return a.offset[d] < b.offset[d];
      if (a.size[d] != b.size[d]) return a.size[d] < b.size[d];
    }
    return a.offset[along] < b.offset[along];
  });
  std::size_t last = 0;
  for (std::size_t i = 1; i < boxes.size(); ++i) {
    const std::int64_t end = boxes[last].offset[along] + boxes[last].size[along];
    if (equal_but_along(boxes[last], boxes[i], along) && boxes[i].offset[along] <= end) {
      const std::int64_t new_end = std::max(end, boxes[i].offset[along] + boxes[i].size[along]);
      boxes[last].size[along] = new_end - boxes[last].offset[along];
    } else if (++last != i) {
      boxes[last] = std::move(boxes[i]);
    }
  }
  boxes.resize(last + 1);
}

/// Appends what `box` holds beyond the boxes [first, last) of `others`, slab by slab.
void append_outside(Box box, const std::vector<Box>& others, std::size_t first, std::size_t last,
                    std::vector<Box>& result) {
  for (; first != last; ++first) {
    const Box common = intersection(box, others[first]);
    if (is_empty(common)) continue;
    for (std::size_t d = 0; d < box.size.size(); ++d) {
      Box slab = box;
      slab.size[d] = common.offset[d] - box.offset[d];
      if (slab.size[d] > 0) append_outside(slab, others, first + 1, last, result);
      slab.offset[d] = common.offset[d] + common.size[d];
      slab.size[d] = box.offset[d] + box.size[d] - slab.offset[d];
      if (slab.size[d] > 0) append_outside(slab, others, first + 1, last, result);
      box.offset[d] = common.offset[d];
      box.size[d] = common.size[d];
    }
    return;
  }
  result.push_back(std::move(box));
}

}  // namespace

std::vector<Box> union_of(std::vector<Box> boxes) {
  boxes.erase(std::remove_if(boxes.begin(), boxes.end(), is_empty), boxes.end());
  if (boxes.size() <= 1) return boxes;
  const std::size_t rank = boxes.front().size.size();
  if (rank == 0) boxes.resize(1);
  for (std::size_t before = 0; boxes.size() > 1 && boxes.size() != before;) {
    before = boxes.size();
    for (std::size_t d = rank; d-- > 0;) join_along(boxes, d);
  }
  if (boxes.size() <= 1) return boxes;
  std::vector<Box> disjoint;
  for (std::size_t i = 0; i < boxes.size(); ++i) append_outside(boxes[i], boxes, 0, i, disjoint);
  return disjoint;
}

std::int64_t union_volume(const std::vector<Box>& boxes) {
  if (boxes.size() == 1) return volume(boxes.front().size);
  std::int64_t sum = 0;
  for (const Box& box : union_of(boxes)) sum += volume(box.size);
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
