#include <algorithm>
#include <string>

#include "planner/error.h"
#include "planner/names/tensor_spec.h"

namespace shardwright {
namespace {

/// Consecutive indices of one global dimension.
struct Run {
  std::int64_t begin;
  std::int64_t length;
};

/// The global indices that a rank holds along one dimension, in local order.
using Runs = std::vector<Run>;

std::int64_t length_of(const Runs& runs) {
  std::int64_t length = 0;
  for (const Run& run : runs) length += run.length;
  return length;
}

/// Appends the local positions [begin, end) of `runs` to `result`.
void append_slice(const Runs& runs, std::int64_t begin, std::int64_t end, Runs& result) {
  std::int64_t position = 0;
  for (const Run& run : runs) {
    const std::int64_t first = std::max(begin, position);
    const std::int64_t last = std::min(end, position + run.length);
    if (first < last) {
      const std::int64_t global = run.begin + first - position;
      if (!result.empty() && result.back().begin + result.back().length == global) {
        result.back().length += last - first;
      } else {
        result.push_back({global, last - first});
      }
    }
    position += run.length;
  }
}

struct Interval {
  std::int64_t begin;
  std::int64_t end;
};

/// Part `index` of `parts` of [begin, end), cut as torch.chunk cuts.
Interval chunk(Interval whole, std::int64_t parts, std::int64_t index) {
  const std::int64_t step = (whole.end - whole.begin + parts - 1) / parts;
  return {std::min(whole.end, whole.begin + step * index),
          std::min(whole.end, whole.begin + step * (index + 1))};
}

Runs split_runs(const Runs& runs, const Placement& placement, std::int64_t parts, std::int64_t index) {
  Runs mine;
  const Interval all{0, length_of(runs)};
  const std::int64_t strips = placement.kind == Placement::Kind::strided_shard ? placement.split_factor : 1;
  for (std::int64_t strip = 0; strip < strips; ++strip) {
    const Interval part = chunk(chunk(all, strips, strip), parts, index);
    append_slice(runs, part.begin, part.end, mine);
  }
  return mine;
}

std::vector<Runs> runs_by_dimension(const Shape& global_shape, const Shape& mesh_shape,
                                    const Shape& coordinate, const std::vector<Placement>& placements) {
  if (placements.size() != mesh_shape.size() || coordinate.size() != mesh_shape.size()) {
    throw Error(ErrorKind::argument, "a mesh of " + std::to_string(mesh_shape.size()) +
                                         " dimensions needs as many " + "placements and coordinates, but " +
                                         std::to_string(placements.size()) + " and " +
                                         std::to_string(coordinate.size()) + " were given");
  }
  std::vector<Runs> runs(global_shape.size());
  for (std::size_t d = 0; d < runs.size(); ++d) {
    if (global_shape[d] > 0) runs[d] = {{0, global_shape[d]}};
  }
  for (std::size_t m = 0; m < placements.size(); ++m) {
    if (placements[m].kind == Placement::Kind::replicate) continue;
    const int dimension = placements[m].dimension;
    if (dimension < 0 || static_cast<std::size_t>(dimension) >= runs.size() ||
        placements[m].split_factor < 1) {
      throw Error(ErrorKind::argument, "cannot shard dimension " + std::to_string(dimension) +
                                           " of a tensor of shape " + to_string(global_shape) +
                                           " with split factor " +
                                           std::to_string(placements[m].split_factor));
    }
    Runs& along = runs[static_cast<std::size_t>(dimension)];
    along = split_runs(along, placements[m], mesh_shape[m], coordinate[m]);
  }
  return runs;
}

}  // namespace

std::vector<LocalBox> local_boxes(const Shape& global_shape, const Shape& mesh_shape, const Shape& coordinate,
                                  const std::vector<Placement>& placements) {
  // The product of the runs of all dimensions, built up one dimension at a time.
  std::vector<LocalBox> boxes{{}};
  for (const Runs& runs : runs_by_dimension(global_shape, mesh_shape, coordinate, placements)) {
    std::vector<LocalBox> longer;
    for (const LocalBox& box : boxes) {
      std::int64_t local = 0;
      for (const Run& run : runs) {
        LocalBox extended = box;
        extended.global.offset.push_back(run.begin);
        extended.global.size.push_back(run.length);
        extended.local_offset.push_back(local);
        longer.push_back(std::move(extended));
        local += run.length;
      }
    }
    boxes = std::move(longer);
  }
  return boxes;
}

Shape local_shape(const Shape& global_shape, const Shape& mesh_shape, const Shape& coordinate,
                  const std::vector<Placement>& placements) {
  Shape shape;
  for (const Runs& runs : runs_by_dimension(global_shape, mesh_shape, coordinate, placements)) {
    shape.push_back(length_of(runs));
  }
  return shape;
}

}  // namespace shardwright
