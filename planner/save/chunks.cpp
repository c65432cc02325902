#include "planner/save/chunks.h"

#include <algorithm>

namespace shardwright {
namespace {

/// The one dimension along which chunks are cut; nothing if there are more, or none.
std::optional<std::size_t> only_cut(const Chunking& chunking, const Shape& shape) {
  const std::size_t rank = chunking.rank;
  std::optional<std::size_t> cut;
  for (std::size_t i = 0; i < chunking.corners.size(); i += 2 * rank) {
    for (std::size_t d = 0; d < rank; ++d) {
      if (chunking.corners[i + d] == 0 && chunking.corners[i + rank + d] == shape[d]) continue;
      if (cut && *cut != d) return std::nullopt;
      cut = d;
    }
  }
  return cut;
}

ChunkFault overlapping(const Box& a, const Box& b) {
  return {to_string(a) + " and " + to_string(b) + " overlap", std::pair{a, b}};
}

ChunkFault unheld(const Box& box) { return {"no rank holds " + to_string(box), std::nullopt}; }

/// Slabs that lie one behind the other along dimension d.
std::optional<ChunkFault> fault_of_slabs(const Chunking& chunking, const Shape& shape, std::size_t d) {
  const std::size_t rank = chunking.rank;
  const std::int64_t* corners = chunking.corners.data();
  std::int64_t reached = 0;
  const auto gap_until = [&](std::int64_t end) {
    Box gap = whole(shape);
    gap.offset[d] = reached;
    gap.size[d] = end - reached;
    return unheld(gap);
  };
  for (std::size_t i = 0; i < chunking.corners.size(); i += 2 * rank) {
    if (corners[i + d] < reached)
      return overlapping(box_at(corners + i - 2 * rank, rank), box_at(corners + i, rank));
    if (corners[i + d] > reached) return gap_until(corners[i + d]);
    reached += corners[i + rank + d];
  }
  return reached < shape[d] ? std::optional(gap_until(shape[d])) : std::nullopt;
}

}  // namespace

bool comes_before(const std::int64_t* a, const std::int64_t* b, std::size_t rank) {
  return std::lexicographical_compare(a, a + 2 * rank, b, b + 2 * rank);
}

Box box_at(const std::int64_t* corners, std::size_t rank) {
  return {Shape(corners, corners + rank), Shape(corners + rank, corners + 2 * rank)};
}

std::optional<ChunkFault> fault_of(const Chunking& chunking, const Shape& shape) {
  const std::size_t rank = chunking.rank;
  const std::int64_t wanted = volume(shape);
  if (rank == 0 || wanted == 0) return std::nullopt;
  if (chunking.corners.empty()) return unheld(whole(shape));
  if (const auto d = only_cut(chunking, shape)) return fault_of_slabs(chunking, shape, *d);
  std::vector<Box> boxes;
  std::int64_t held = 0;
  for (std::size_t i = 0; i < chunking.corners.size(); i += 2 * rank) {
    boxes.push_back(box_at(chunking.corners.data() + i, rank));
    held += volume(boxes.back().size);
  }
  if (const auto twice = overlap(boxes)) return overlapping(twice->first, twice->second);
  if (held == wanted) return std::nullopt;
  const Box gap = *hole(whole(shape), boxes);
  ChunkFault fault = unheld(gap);
  if (const std::int64_t more = wanted - held - volume(gap.size); more > 0)
    fault.text += ", nor " + std::to_string(more) + " other elements";
  return fault;
}

}  // namespace shardwright
