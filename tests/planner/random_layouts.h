#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/names/tensor_spec.h"

namespace shardwright {

/// Random numbers that are the same on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : engine_(seed) {}

  std::int64_t between(std::int64_t least, std::int64_t most) {
    return least + static_cast<std::int64_t>(engine_() % static_cast<std::uint64_t>(most - least + 1));
  }
  bool once_in(std::int64_t n) { return between(1, n) == 1; }

  template <typename T>
  const T& one_of(const std::vector<T>& choices) {
    return choices[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(choices.size()) - 1))];
  }

  template <typename T>
  void shuffle(std::vector<T>& items) {
    for (std::size_t i = items.size(); i > 1; --i) {
      std::swap(items[i - 1], items[static_cast<std::size_t>(between(0, static_cast<std::int64_t>(i) - 1))]);
    }
  }

 private:
  std::mt19937_64 engine_;
};

/// Visits every index of a tensor of that shape, row-major.
template <typename Visit>
void for_each_index(const Shape& shape, const Visit& visit) {
  Shape index(shape.size(), 0);
  for (std::int64_t left = volume(shape); left > 0; --left) {
    visit(static_cast<const Shape&>(index));
    for (std::size_t d = shape.size(); d-- > 0;) {
      if (++index[d] < shape[d]) break;
      index[d] = 0;
    }
  }
}

/// Position of an index in the row-major order of a tensor of that shape.
inline std::size_t flat(const Shape& index, const Shape& shape) {
  std::int64_t position = 0;
  for (std::size_t d = 0; d < shape.size(); ++d) position = position * shape[d] + index[d];
  return static_cast<std::size_t>(position);
}

inline Shape plus(Shape a, const Shape& b) {
  for (std::size_t d = 0; d < a.size(); ++d) a[d] += b[d];
  return a;
}

inline bool holds(const Box& box, const Shape& index) {
  for (std::size_t d = 0; d < index.size(); ++d) {
    if (index[d] < box.offset[d] || index[d] >= box.offset[d] + box.size[d]) return false;
  }
  return true;
}

inline Shape random_shape(Random& random, std::int64_t rank, std::int64_t least, std::int64_t most) {
  Shape shape(static_cast<std::size_t>(rank));
  for (std::int64_t& size : shape) size = random.between(least, most);
  return shape;
}

/// A box inside a tensor of that shape, of `least` indices or more along each dimension.
inline Box random_box(Random& random, const Shape& shape, std::int64_t least) {
  Box box;
  for (const std::int64_t size : shape) {
    box.size.push_back(random.between(std::min(least, size), size));
    box.offset.push_back(random.between(0, size - box.size.back()));
  }
  return box;
}

/// Boxes that cover `region` once: cut in two at random, each part again, up to `cuts` times. Makes grids,
/// bricks and all between, but nothing that a straight cut through all of it could not separate.
inline std::vector<Box> random_tiling(Random& random, const Box& region, std::int64_t cuts) {
  std::vector<std::size_t> divisible;
  for (std::size_t d = 0; d < region.size.size(); ++d) {
    if (region.size[d] > 1) divisible.push_back(d);
  }
  if (cuts == 0 || divisible.empty()) return {region};
  const std::size_t d = random.one_of(divisible);
  const std::int64_t cut = random.between(1, region.size[d] - 1);
  Box first = region;
  Box second = region;
  first.size[d] = cut;
  second.offset[d] += cut;
  second.size[d] -= cut;
  const std::int64_t cuts_of_first = random.between(0, cuts - 1);
  std::vector<Box> boxes = random_tiling(random, first, cuts_of_first);
  for (Box& box : random_tiling(random, second, cuts - 1 - cuts_of_first)) boxes.push_back(std::move(box));
  return boxes;
}

struct Mesh {
  Shape shape;
  std::vector<Placement> placements;
};

/// A mesh of 1 to 3 dimensions and up to 8 ranks, with any placements of a tensor of that rank.
inline Mesh random_mesh(Random& random, std::int64_t tensor_rank) {
  using Kind = Placement::Kind;
  Mesh mesh;
  std::int64_t ranks = 8;
  for (std::int64_t dimensions = random.between(1, 3); dimensions > 0; --dimensions) {
    const std::int64_t size = random.between(1, ranks);
    ranks /= size;
    Placement placement;
    placement.kind = tensor_rank == 0 ? Kind::replicate
                                      : random.one_of<Kind>({Kind::replicate, Kind::shard, Kind::shard,
                                                             Kind::shard, Kind::strided_shard});
    if (placement.kind != Kind::replicate)
      placement.dimension = static_cast<int>(random.between(0, tensor_rank - 1));
    if (placement.kind == Kind::strided_shard) placement.split_factor = random.between(1, 4);
    mesh.shape.push_back(size);
    mesh.placements.push_back(placement);
  }
  return mesh;
}

/// The plain reference for placements: for each dimension of a tensor, the list of the global indices that a
/// rank holds, in local order.
using IndexLists = std::vector<std::vector<std::int64_t>>;

/// As torch.chunk: all parts but the last ones have the same length, rounded up. Padded with empty parts.
inline IndexLists torch_chunk(const std::vector<std::int64_t>& list, std::int64_t parts) {
  const std::size_t length =
      (list.size() + static_cast<std::size_t>(parts) - 1) / static_cast<std::size_t>(parts);
  IndexLists chunks(static_cast<std::size_t>(parts));
  for (std::size_t i = 0; i < list.size(); ++i) chunks[i / length].push_back(list[i]);
  return chunks;
}

inline IndexLists index_lists(const Shape& global_shape, const Mesh& mesh, const Shape& coordinate) {
  IndexLists lists;
  for (const std::int64_t size : global_shape) {
    lists.emplace_back();
    for (std::int64_t i = 0; i < size; ++i) lists.back().push_back(i);
  }
  for (std::size_t m = 0; m < mesh.shape.size(); ++m) {
    const Placement& placement = mesh.placements[m];
    if (placement.kind == Placement::Kind::replicate) continue;
    std::vector<std::int64_t>& list = lists[static_cast<std::size_t>(placement.dimension)];
    std::vector<std::int64_t> mine;
    for (const auto& strip : torch_chunk(list, placement.split_factor)) {
      const auto part = torch_chunk(strip, mesh.shape[m])[static_cast<std::size_t>(coordinate[m])];
      mine.insert(mine.end(), part.begin(), part.end());
    }
    list = mine;
  }
  return lists;
}

inline Shape shape_of(const IndexLists& lists) {
  Shape shape;
  for (const auto& list : lists) shape.push_back(static_cast<std::int64_t>(list.size()));
  return shape;
}

/// The global index of a local one.
inline Shape global_index(const IndexLists& lists, const Shape& local) {
  Shape global;
  for (std::size_t d = 0; d < local.size(); ++d)
    global.push_back(lists[d][static_cast<std::size_t>(local[d])]);
  return global;
}

}  // namespace shardwright
