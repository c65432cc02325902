#include "planner/save/saved_values.h"

#include <algorithm>
#include <cstring>

#include "planner/error.h"

namespace shardwright {

void SavedItems::add(std::uint32_t index, const Shape& offset, const Shape& size) {
  value.push_back(index);
  corners.insert(corners.end(), offset.begin(), offset.end());
  corners.insert(corners.end(), size.begin(), size.end());
}

Hash hash_of(std::string_view bytes) {
  // Two sums over words of 8 bytes, multiplied and folded so that every bit of a word moves every bit above
  // it and, by the rotation, below it.
  std::uint64_t a = 0x9e3779b97f4a7c15U ^ bytes.size();
  std::uint64_t b = 0xc2b2ae3d27d4eb4fU + bytes.size();
  const auto mix = [](std::uint64_t x) {
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93U;
    x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93U;
    return x ^ (x >> 32);
  };
  for (std::size_t at = 0; at < bytes.size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<std::size_t>(8, bytes.size() - at));
    a = mix(a ^ word) + b;
    b = (b << 29 | b >> 35) * 0x9fb21c651e98df25U + (word ^ a);
  }
  a = mix(a ^ b);
  b = mix(b + a);
  Hash hash;
  std::memcpy(hash.data(), &a, 8);
  std::memcpy(hash.data() + 8, &b, 8);
  return hash;
}

Shape coordinate_on_mesh(const SavedValues& values, std::int64_t rank) {
  const auto found = std::find(values.mesh_ranks.begin(), values.mesh_ranks.end(), rank);
  if (found == values.mesh_ranks.end()) {
    throw Error(ErrorKind::mismatch, "rank " + std::to_string(rank) + " is not on the mesh of " +
                                         (values.values.empty() ? "its values" : values.values.front().fqn));
  }
  std::int64_t place = found - values.mesh_ranks.begin();
  Shape coordinate(values.mesh_shape.size());
  for (std::size_t d = coordinate.size(); d-- > 0;) {
    coordinate[d] = place % values.mesh_shape[d];
    place /= values.mesh_shape[d];
  }
  return coordinate;
}

SavedItems items_on_mesh(const SavedValues& values, std::int64_t rank) {
  const Shape coordinate = coordinate_on_mesh(values, rank);
  SavedItems items;
  for (std::size_t i = 0; i < values.values.size(); ++i) {
    const SavedValue& value = values.values[i];
    for (const LocalBox& box : local_boxes(value.shape, values.mesh_shape, coordinate, value.placements)) {
      items.add(static_cast<std::uint32_t>(i), box.global.offset, box.global.size);
    }
  }
  return items;
}

std::uint64_t bytes_of_box(const SavedValue& value, const std::int64_t* size) {
  if (value.kind == SavedValue::Kind::object) return 0;
  std::uint64_t bytes = value.properties.element_bytes;
  for (std::size_t d = 0; d < value.shape.size(); ++d) bytes *= static_cast<std::uint64_t>(size[d]);
  return bytes;
}

}  // namespace shardwright
