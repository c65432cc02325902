#include "planner/geometry/lattice.h"

#include <algorithm>
#include <string>
#include <utility>

#include "planner/error.h"

namespace shardwright {
namespace {

/// What a lattice is along one dimension: indices from `first` on, of factors in the order of falling steps.
struct Comb {
  std::int64_t first = 0;
  struct Tooth {
    std::int64_t size;
    std::int64_t step;
  };
  std::vector<Tooth> teeth;
};

Comb comb_of(const Lattice& lattice, std::size_t dimension) {
  Comb comb{lattice.first[dimension], {}};
  for (std::size_t i = 0; i < lattice.sizes.size(); ++i) {
    if (lattice.axes[i] == static_cast<int>(dimension) && lattice.sizes[i] != 1)
      comb.teeth.push_back({lattice.sizes[i], lattice.steps[i]});
  }
  std::sort(comb.teeth.begin(), comb.teeth.end(),
            [](const Comb::Tooth& a, const Comb::Tooth& b) { return a.step > b.step; });
  return comb;
}

/// Steps that no rule has, which a damaged plan may have, would make more.
constexpr std::size_t most_boxes = std::size_t{1} << 22;

void expect_few(std::size_t boxes) {
  if (boxes > most_boxes)
    throw Error(ErrorKind::malformed,
                "expected elements that few boxes of a view hold, found steps that "
                "take more than " +
                    std::to_string(most_boxes));
}

/// From the first index to behind the last one.
std::int64_t span_of(const Comb& comb) {
  std::int64_t span = 1;
  for (const Comb::Tooth& tooth : comb.teeth) span += (tooth.size - 1) * tooth.step;
  return span;
}

/// A range of each factor of one dimension.
using Ranges = Box;

void add_with_outer(std::int64_t offset, std::int64_t size, std::vector<Ranges> inner,
                    std::vector<Ranges>& all) {
  for (Ranges& ranges : inner) {
    ranges.offset.insert(ranges.offset.begin(), offset);
    ranges.size.insert(ranges.size.begin(), size);
    all.push_back(std::move(ranges));
  }
}

/// The comb in factors of these steps, of which each divides the one before and the last is 1.
std::vector<Ranges> ranges_in_factors(const Comb& comb, const std::int64_t* step, const std::int64_t* end) {
  if (end - step == 0) return {{{}, {}}};
  std::vector<Ranges> all;
  // Factors along this one; the rest runs inside of one index of it, or over its edge.
  Comb rest{comb.first, {}};
  std::int64_t count = 1;
  for (std::size_t i = 0; i < comb.teeth.size(); ++i) {
    const Comb::Tooth& tooth = comb.teeth[i];
    if (tooth.step == *step && count == 1) {
      count = tooth.size;
    } else {
      rest.teeth.push_back(tooth);
    }
  }
  const std::int64_t inside = comb.first % *step;
  if (inside + span_of(rest) <= *step) {
    rest.first = inside;
    add_with_outer(comb.first / *step, count, ranges_in_factors(rest, step + 1, end), all);
    return all;
  }
  // Over the edge: the outermost factor of the rest is cut where it crosses, or index by index. Where it
  // fills whole indices of this factor, these stay together.
  const Comb::Tooth outer = rest.teeth.front();
  Comb inner{0, {rest.teeth.begin() + 1, rest.teeth.end()}};
  const std::int64_t inner_span = span_of(inner);
  const std::int64_t in_one = *step % outer.step == 0 && inner_span <= outer.step ? *step / outer.step : 0;
  for (std::int64_t i = 0; i < outer.size;) {
    const std::int64_t first = comb.first + i * outer.step;
    const bool begins = count == 1 && in_one > 1 && first % *step + inner_span <= outer.step;
    if (const std::int64_t whole = begins ? (outer.size - i) / in_one : 0; whole > 0) {
      Comb part{first, inner.teeth};
      part.teeth.insert(part.teeth.begin(), {{whole, *step}, {in_one, outer.step}});
      std::vector<Ranges> of_part = ranges_in_factors(part, step, end);
      std::move(of_part.begin(), of_part.end(), std::back_inserter(all));
      i += whole * in_one;
      continue;
    }
    const std::int64_t room = *step - first % *step;
    // So many indices of the outer factor end before the edge.
    std::int64_t fit = room < inner_span ? 1 : (room - inner_span) / outer.step + 1;
    fit = std::min(fit, outer.size - i);
    Comb part{first, inner.teeth};
    if (fit > 1) part.teeth.insert(part.teeth.begin(), {fit, outer.step});
    if (count > 1) part.teeth.insert(part.teeth.begin(), {count, *step});
    std::vector<Ranges> of_part = ranges_in_factors(part, step, end);
    std::move(of_part.begin(), of_part.end(), std::back_inserter(all));
    i += fit;
    expect_few(all.size());
  }
  return all;
}

bool is_box(const Lattice& lattice) {
  return std::all_of(lattice.steps.begin(), lattice.steps.end(), [](std::int64_t step) { return step == 1; });
}

std::vector<Box> boxes_of(const View& view, const std::vector<Lattice>& lattices) {
  std::vector<Box> boxes;
  for (const Lattice& lattice : lattices) {
    std::vector<Box> of_one = boxes_in_view(view, lattice);
    std::move(of_one.begin(), of_one.end(), std::back_inserter(boxes));
  }
  return boxes;
}

}  // namespace

Lattice lattice_of(const Box& box) {
  const View view = plain_view(box.size);
  return {box.offset, box.size, view.dimensions, Shape(box.size.size(), 1)};
}

Box box_of(const Lattice& lattice) {
  Box box{lattice.first, Shape(lattice.first.size(), 1)};
  for (std::size_t i = 0; i < lattice.sizes.size(); ++i) {
    if (lattice.axes[i] >= 0) box.size[static_cast<std::size_t>(lattice.axes[i])] *= lattice.sizes[i];
  }
  return box;
}

Lattice lattice_of(const View& view, const Box& box) {
  return {index_in_tensor(view, box.offset), box.size, view.dimensions, steps_of(view)};
}

bool lies_inside(const Lattice& lattice, const Shape& shape) {
  const std::size_t factors = lattice.sizes.size();
  if (lattice.first.size() != shape.size() || lattice.axes.size() != factors ||
      lattice.steps.size() != factors)
    return false;
  const auto rank = static_cast<int>(shape.size());
  for (std::size_t i = 0; i < factors; ++i) {
    if (lattice.sizes[i] < 0 || lattice.steps[i] < 1 || lattice.axes[i] < -1 || lattice.axes[i] >= rank)
      return false;
    if (lattice.axes[i] < 0 && lattice.sizes[i] > 1) return false;
  }
  for (std::size_t d = 0; d < shape.size(); ++d) {
    // Each factor has to step over all of those within it; then no element is met twice, and nothing
    // overflows.
    Comb comb = comb_of(lattice, d);
    std::int64_t span = 1;
    for (auto tooth = comb.teeth.rbegin(); tooth != comb.teeth.rend(); ++tooth) {
      if (tooth->size == 0) continue;
      if (tooth->step < span || tooth->step > shape[d] || tooth->size - 1 > (shape[d] - span) / tooth->step)
        return false;
      span += (tooth->size - 1) * tooth->step;
    }
    const bool is_empty =
        std::any_of(lattice.sizes.begin(), lattice.sizes.end(), [](std::int64_t size) { return size == 0; });
    if (lattice.first[d] < 0 || lattice.first[d] > shape[d]) return false;
    if (!is_empty && span > shape[d] - lattice.first[d]) return false;
  }
  return true;
}

View common_view(const Shape& shape, const std::vector<Lattice>& lattices) {
  View view;
  for (std::size_t d = 0; d < shape.size(); ++d) {
    Shape steps{1};
    for (const Lattice& lattice : lattices) {
      for (const Comb::Tooth& tooth : comb_of(lattice, d).teeth) steps.push_back(tooth.step);
    }
    std::sort(steps.begin(), steps.end());
    Shape kept{1};
    for (std::int64_t step : steps) {
      if (step != kept.back() && step % kept.back() == 0) kept.push_back(step);
    }
    for (std::size_t i = kept.size(); i-- > 0;) {
      const bool outermost = i + 1 == kept.size();
      view.sizes.push_back(outermost ? (shape[d] + kept[i] - 1) / kept[i] : kept[i + 1] / kept[i]);
      view.dimensions.push_back(static_cast<int>(d));
    }
  }
  return view;
}

std::vector<Box> boxes_in_view(const View& view, const Box& box) {
  return boxes_in_view(view, lattice_of(box));
}

std::vector<Box> boxes_in_view(const View& view, const Lattice& lattice) {
  if (std::any_of(lattice.sizes.begin(), lattice.sizes.end(), [](std::int64_t size) { return size == 0; }))
    return {};
  if (is_plain(view) && is_box(lattice)) return {box_of(lattice)};
  const Shape steps = steps_of(view);
  std::vector<Box> boxes{{{}, {}}};
  for (std::size_t first = 0, last = 0, d = 0; first < steps.size(); first = last, ++d) {
    while (last < steps.size() && view.dimensions[last] == view.dimensions[first]) ++last;
    const std::vector<Ranges> along =
        ranges_in_factors(comb_of(lattice, d), steps.data() + first, steps.data() + last);
    expect_few(boxes.size() * along.size());
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

std::int64_t union_volume(const Shape& shape, const std::vector<Lattice>& lattices) {
  return union_volume(boxes_of(common_view(shape, lattices), lattices));
}

std::string tiling_fault(const Shape& shape, const std::vector<Lattice>& lattices) {
  const View view = common_view(shape, lattices);
  std::vector<Box> boxes = boxes_of(view, lattices);
  if (is_plain(view)) return tiling_fault(whole(shape), std::move(boxes));
  // What the view has beyond the tensor is filled, dimension by dimension.
  const Shape rounded = tensor_shape(view);
  for (std::size_t d = 0; d < shape.size(); ++d) {
    Box beyond = whole(rounded);
    for (std::size_t before = 0; before < d; ++before) beyond.size[before] = shape[before];
    beyond.offset[d] = shape[d];
    beyond.size[d] = rounded[d] - shape[d];
    if (is_empty(beyond)) continue;
    std::vector<Box> filled = boxes_in_view(view, beyond);
    std::move(filled.begin(), filled.end(), std::back_inserter(boxes));
  }
  const std::string fault = tiling_fault(whole(view.sizes), std::move(boxes));
  return fault.empty() ? fault : fault + " of the tensor as " + to_string(view);
}

std::string overlap_fault(const Shape& shape, const std::vector<Lattice>& lattices) {
  std::int64_t elements = 0;
  for (const Lattice& lattice : lattices) elements += volume(lattice.sizes);
  const std::int64_t more = elements - union_volume(shape, lattices);
  return more == 0 ? "" : std::to_string(more) + " of its elements come from more than one place";
}

}  // namespace shardwright
