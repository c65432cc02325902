#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "planner/save/plan_together.h"
#include "planner/save/save_wire.h"
#include "planner/save/write_results.h"
#include "tests/planner/random_layouts.h"

namespace shardwright {

/// What the ranks of a job have to save: values on a mesh of all ranks, and, box by box, tensors in shards
/// with replicas, tensors that some ranks hold whole, and objects. Every state brings its descriptions.
struct RandomSave {
  std::vector<RankState> states;
};

inline SavedValue random_value(Random& random, std::string fqn, SavedValue::Kind kind) {
  SavedValue value;
  value.fqn = std::move(fqn);
  value.kind = kind;
  if (kind == SavedValue::Kind::object) return value;
  value.properties = {"bfloat16", "strided", 2, static_cast<std::uint32_t>(random.between(0, 3))};
  if (random.once_in(3)) value.properties = {"float32", "strided", 4, 0};
  value.shape = random_shape(random, random.between(0, 3), 1, 9);
  if (random.once_in(3)) value.path = {{value.fqn.substr(0, 1), false}, {value.fqn.substr(2), false}};
  return value;
}

inline void add_part(RankState& state, const SavedValues& values, const SavedItems& items) {
  const std::string bytes = encode(values);
  state.holdings.push_back(
      {hash_of(bytes), values.has_mesh() ? std::vector<std::uint64_t>{} : pack(items, values)});
  state.values.push_back(bytes);
}

/// `ranks`: how many; 0: any number up to 8.
inline RandomSave random_save(Random& random, bool with_mesh, std::int64_t ranks = 0) {
  using Kind = SavedValue::Kind;
  SavedValues on_mesh;
  for (std::int64_t i = random.between(1, 4); i > 0; --i) {
    SavedValue value = random_value(random, "m." + std::to_string(i), Kind::shards);
    Mesh mesh = random_mesh(random, std::ssize(value.shape));
    if (on_mesh.values.empty()) on_mesh.mesh_shape = mesh.shape;
    while (mesh.placements.size() < on_mesh.mesh_shape.size()) mesh.placements.emplace_back();
    mesh.placements.resize(on_mesh.mesh_shape.size());
    value.placements = mesh.placements;
    on_mesh.values.push_back(value);
  }
  if (ranks == 0) ranks = volume(on_mesh.mesh_shape);
  for (std::int64_t r = 0; r < ranks; ++r) on_mesh.mesh_ranks.push_back(r);
  random.shuffle(on_mesh.mesh_ranks);

  RandomSave save;
  save.states.resize(static_cast<std::size_t>(ranks));
  SavedValues named;
  std::vector<SavedItems> items(save.states.size());
  const auto for_some_ranks = [&](const auto& give) {
    const auto always = static_cast<std::size_t>(random.between(0, ranks - 1));
    for (std::size_t r = 0; r < items.size(); ++r) {
      if (r == always || random.once_in(3)) give(items[r]);
    }
  };
  for (std::int64_t i = random.between(1, 6); i > 0; --i) {
    const Kind kind = random.one_of<Kind>({Kind::shards, Kind::shards, Kind::tensor, Kind::object});
    named.values.push_back(random_value(random, "n." + std::to_string(i), kind));
    const SavedValue& value = named.values.back();
    const auto index = static_cast<std::uint32_t>(named.values.size() - 1);
    std::vector<Box> boxes{whole(value.shape)};
    if (kind == Kind::shards) boxes = random_tiling(random, boxes.front(), random.between(0, 8));
    random.shuffle(boxes);
    for (const Box& box : boxes)
      for_some_ranks([&](SavedItems& of_rank) { of_rank.add(index, box.offset, box.size); });
  }
  for (std::size_t r = 0; r < save.states.size(); ++r) {
    save.states[r].rank = static_cast<std::int64_t>(r);
    if (with_mesh) add_part(save.states[r], on_mesh, {});
    add_part(save.states[r], named, items[r]);
  }
  return save;
}

/// What a rank has written of a random state: each file of it full of items, one behind the other.
inline WriteResults random_results(Random& random) {
  WriteResults results;
  results.rank = random.between(0, 1000);
  const RankState state = random_save(random, false, 1).states.front();
  results.values = decode_values(state.values.front());
  results.items = items_of(state).front();
  for (const char* name : {"rank-00007-00000.safetensors", "rank-00007.bin"}) {
    const auto header = static_cast<std::uint64_t>(random.between(0, 300));
    results.files.push_back({name, header, header, static_cast<std::uint64_t>(random.between(0, 1L << 60))});
  }
  const std::int64_t* corner = results.items.corners.data();
  for (const std::uint32_t index : results.items.value) {
    const SavedValue& value = results.values.values[index];
    const std::size_t rank = value.shape.size();
    const auto file = static_cast<std::uint32_t>(random.between(0, 1));
    std::uint64_t& end = results.files[file].size;
    const std::uint64_t begin = end;
    end += value.kind == SavedValue::Kind::object ? static_cast<std::uint64_t>(random.between(0, 90))
                                                  : bytes_of_box(value, corner + rank);
    corner += 2 * rank;
    std::vector<std::uint64_t> checksums;
    for (std::int64_t i = random.between(0, 2); i > 0; --i)
      checksums.push_back(static_cast<std::uint64_t>(random.between(0, 1L << 62)));
    results.ranges.push_back({file, {begin, end, std::move(checksums)}});
  }
  return results;
}

}  // namespace shardwright
