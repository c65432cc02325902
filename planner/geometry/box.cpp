#include "planner/geometry/box.h"

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

bool intersects(const Box& a, const Box& b) {
  for (std::size_t d = 0; d < a.offset.size(); ++d) {
    const std::int64_t begin = std::max(a.offset[d], b.offset[d]);
    if (begin >= a.offset[d] + a.size[d] || begin >= b.offset[d] + b.size[d]) return false;
  }
  return true;
}

bool lies_inside(const Box& box, const Shape& shape) {
  if (box.offset.size() != shape.size() || box.size.size() != shape.size()) return false;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    if (box.offset[d] < 0 || box.size[d] < 0 || box.size[d] > shape[d]) return false;
    if (box.offset[d] > shape[d] - box.size[d]) return false;
  }
  return true;
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

std::int64_t elements_to(const Shape& index, const Shape& strides) {
  std::int64_t elements = 0;
  for (std::size_t d = 0; d < index.size(); ++d) elements += index[d] * strides[d];
  return elements;
}

bool next_index(Shape& index, const Shape& sizes) {
  for (std::size_t d = index.size(); d-- > 0;) {
    if (++index[d] < sizes[d]) return true;
    index[d] = 0;
  }
  return false;
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

namespace {

std::int64_t held_of(const Box& region, const std::vector<Box>& boxes) {
  std::int64_t held = 0;
  for (const Box& box : boxes) held += volume(intersection(box, region).size);
  return held;
}

/// Cuts the region in two where most boxes begin or end, at the middle one of these places.
std::pair<Box, Box> halves(const Box& region, const std::vector<Box>& boxes) {
  std::size_t along = 0;
  std::vector<std::int64_t> places;
  for (std::size_t d = 0; d < region.size.size(); ++d) {
    std::vector<std::int64_t> found;
    for (const Box& box : boxes) {
      for (const std::int64_t place : {box.offset[d], end_of(box, d)}) {
        if (place > region.offset[d] && place < end_of(region, d)) found.push_back(place);
      }
    }
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    if (found.size() <= places.size()) continue;
    along = d;
    places = std::move(found);
  }
  std::pair two{region, region};
  const std::int64_t middle = places[places.size() / 2];
  two.first.size[along] = middle - region.offset[along];
  two.second.offset[along] = middle;
  two.second.size[along] = end_of(region, along) - middle;
  return two;
}

}  // namespace

std::optional<Box> hole(Box region, std::vector<Box> boxes) {
  const Box all = region;
  const std::vector<Box> all_boxes = boxes;
  const auto is_elsewhere = [&](const Box& box) { return is_empty(intersection(box, region)); };
  std::erase_if(boxes, is_elsewhere);
  if (held_of(region, boxes) == volume(region.size)) return std::nullopt;
  while (!boxes.empty()) {  // some box ends inside the region, or it would be full
    const auto [first, second] = halves(region, boxes);
    region = held_of(first, boxes) < volume(first.size) ? first : second;
    std::erase_if(boxes, is_elsewhere);
  }
  for (std::size_t d = 0; d < all.size.size(); ++d) {  // as far as no box is in the way
    const std::int64_t at = region.offset[d];
    std::int64_t begin = all.offset[d];
    std::int64_t end = end_of(all, d);
    region.offset[d] = begin;
    region.size[d] = end - begin;
    for (const Box& box : all_boxes) {
      if (is_elsewhere(box)) continue;
      if (box.offset[d] > at) {
        end = std::min(end, box.offset[d]);
      } else {
        begin = std::max(begin, end_of(box, d));
      }
    }
    region.offset[d] = begin;
    region.size[d] = end - begin;
  }
  return region;
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
