#include "planner/save/save_wire.h"

#include <algorithm>
#include <map>

#include "planner/save/save_message.h"

namespace shardwright {
namespace {

/// The least shape that holds all chunks.
Shape end_of(const Chunking& chunking) {
  Shape end(chunking.rank, 0);
  for (std::size_t i = 0; i < chunking.corners.size(); i += 2 * end.size()) {
    for (std::size_t d = 0; d < end.size(); ++d) {
      std::int64_t last = 0;
      check(!__builtin_add_overflow(chunking.corners[i + d], chunking.corners[i + end.size() + d], &last),
            "a corner that there is not");
      end[d] = std::max(end[d], last);
    }
  }
  return end;
}

std::string_view view(const Hash& hash) { return {hash.data(), hash.size()}; }

}  // namespace

std::string encode(const RankState& state) {
  wire::RankState message;
  for (const RankState::Holding& holding : state.holdings) {
    wire::RankHolding* to = message.add_holdings();
    to->set_values(std::string(view(holding.values)));
    to->mutable_items()->Add(holding.packed.begin(), holding.packed.end());
  }
  for (const std::string& values : state.values) message.add_values(values);
  message.set_rank(state.rank);
  return finish_message(message);
}

RankState decode_state(std::string_view bytes) {
  auto message = read_message<wire::RankState>(bytes, "what a rank has to save");
  RankState state;
  for (const wire::RankHolding& from : message.holdings()) {
    RankState::Holding& holding = state.holdings.emplace_back();
    check(from.values().size() == holding.values.size(), "a hash that is none");
    std::copy(from.values().begin(), from.values().end(), holding.values.begin());
    holding.packed.assign(from.items().begin(), from.items().end());
  }
  for (std::string& values : *message.mutable_values()) state.values.push_back(std::move(values));
  check(message.rank() >= 0 && message.rank() < most_ranks, "a rank that there is not");
  state.rank = message.rank();
  return state;
}

std::vector<std::uint64_t> pack(const SavedItems& items, const SavedValues& values) {
  std::vector<std::uint64_t> packed;
  const std::int64_t* corner = items.corners.data();
  std::uint32_t before = 0;
  for (const std::uint32_t index : items.value) {
    const Shape& shape = values.values.at(index).shape;
    const std::size_t rank = shape.size();
    packed.push_back(index - before);
    before = index;
    std::uint64_t cut = 0;
    for (std::size_t d = 0; d < rank; ++d) {
      if (corner[d] != 0 || corner[rank + d] != shape[d]) cut |= std::uint64_t{1} << d;
    }
    packed.push_back(cut);
    for (std::size_t d = 0; d < rank; ++d) {
      if ((cut >> d & 1) == 0) continue;
      packed.push_back(static_cast<std::uint64_t>(corner[d]));
      packed.push_back(static_cast<std::uint64_t>(corner[rank + d]));
    }
    corner += 2 * rank;
  }
  return packed;
}

SavedItems unpack(const std::vector<std::uint64_t>& packed, const SavedValues& values) {
  SavedItems items;
  items.value.reserve(packed.size() / 4);
  items.corners.reserve(packed.size());
  std::uint64_t index = 0;
  for (std::size_t at = 0; at < packed.size();) {
    check(packed.size() - at >= 2, "an item without its box");
    check(packed[at] < values.values.size() && (index += packed[at]) < values.values.size(),
          "an item of no value");
    const std::uint64_t cut = packed[at + 1];
    at += 2;
    const Shape& shape = values.values[index].shape;
    const std::size_t rank = shape.size();
    check(cut >> rank == 0, "a box of more dimensions than its tensor");
    const std::size_t first = items.corners.size();
    items.value.push_back(static_cast<std::uint32_t>(index));
    items.corners.resize(first + 2 * rank);
    for (std::size_t d = 0; d < rank; ++d) {
      std::int64_t& offset = items.corners[first + d];
      std::int64_t& size = items.corners[first + rank + d];
      size = shape[d];
      if ((cut >> d & 1) == 0) continue;
      check(packed.size() - at >= 2, "an item without its box");
      const auto whole = static_cast<std::uint64_t>(shape[d]);
      check(packed[at] <= whole && packed[at + 1] <= whole - packed[at], "a box outside its tensor");
      offset = static_cast<std::int64_t>(packed[at]);
      size = static_cast<std::int64_t>(packed[at + 1]);
      at += 2;
    }
  }
  return items;
}

std::string encode(const RankWrites& writes) {
  wire::RankWrites message;
  for (const std::vector<std::uint32_t>& items : writes.left_to_others) {
    wire::ItemRuns* runs = message.add_left_to_others();
    std::uint32_t end = 0;
    for (std::size_t i = 0; i < items.size();) {
      std::size_t next = i + 1;
      while (next < items.size() && items[next] == items[next - 1] + 1) ++next;
      runs->add_run(items[i] - end);
      runs->add_run(next - i);
      end = items[next - 1] + 1;
      i = next;
    }
  }
  for (const ItemCut& cut : writes.cuts) {
    for (const std::int64_t number : {std::int64_t{cut.holding}, std::int64_t{cut.item},
                                      std::int64_t{cut.dimension}, cut.begin, cut.size})
      message.add_cut(static_cast<std::uint64_t>(number));
  }
  return finish_message(message);
}

RankWrites decode_writes(std::string_view bytes, const std::vector<std::size_t>& items) {
  const auto message = read_message<wire::RankWrites>(bytes, "what a rank is to write");
  check(message.left_to_others_size() == static_cast<int>(items.size()), "it is for other holdings");
  RankWrites writes{LeftToOthers(items.size()), {}};
  for (std::size_t holding = 0; holding < items.size(); ++holding) {
    const auto& runs = message.left_to_others(static_cast<int>(holding)).run();
    check(runs.size() % 2 == 0, "a run without its length");
    std::uint64_t at = 0;
    for (auto run = runs.begin(); run != runs.end(); run += 2) {
      check(run[0] <= items[holding] - at && run[1] <= items[holding] - at - run[0],
            "more items than the rank has");
      at += run[0];
      for (const std::uint64_t end = at + run[1]; at < end; ++at)
        writes.left_to_others[holding].push_back(static_cast<std::uint32_t>(at));
    }
  }
  check(message.cut_size() % 5 == 0, "a slice without its end");
  for (auto cut = message.cut().begin(); cut != message.cut().end(); cut += 5) {
    check(cut[0] < items.size() && cut[1] < items[cut[0]], "a slice of an item that the rank does not have");
    check(cut[2] < most_dimensions, "a slice along a dimension that there is not");
    check(cut[3] <= most_elements && cut[4] <= most_elements, "a slice that there is not");
    writes.cuts.push_back({static_cast<std::uint32_t>(cut[0]), static_cast<std::uint32_t>(cut[1]),
                           static_cast<std::uint32_t>(cut[2]), static_cast<std::int64_t>(cut[3]),
                           static_cast<std::int64_t>(cut[4])});
  }
  return writes;
}

std::string encode(const GlobalMetadata& metadata) {
  wire::GlobalMetadata message;
  message.set_values(encode(metadata.values));
  message.mutable_chunking()->Add(metadata.chunking.begin(), metadata.chunking.end());
  for (const Chunking& chunking : metadata.chunkings) {
    message.add_dimensions(chunking.rank);
    message.add_chunk_count(chunking.count());
    const std::size_t step = 2 * std::size_t{chunking.rank};
    for (std::size_t i = 0; i < chunking.corners.size(); ++i) {
      message.add_corner(chunking.corners[i] - (i < step ? 0 : chunking.corners[i - step]));
    }
  }
  return finish_message(message);
}

GlobalMetadata decode_metadata(std::string_view bytes) {
  const auto message = read_message<wire::GlobalMetadata>(bytes, "a checkpoint's metadata");
  GlobalMetadata metadata;
  metadata.values = decode_values(message.values());
  check(!metadata.values.has_mesh(), "metadata with a mesh");
  check(message.dimensions_size() == message.chunk_count_size(), "chunkings without their chunks");
  auto corner = message.corner().begin();
  for (int i = 0; i < message.dimensions_size(); ++i) {
    Chunking& chunking = metadata.chunkings.emplace_back();
    chunking.rank = message.dimensions(i);
    const std::size_t step = 2 * std::size_t{chunking.rank};
    const auto left = static_cast<std::uint64_t>(message.corner().end() - corner);
    check(chunking.rank < most_dimensions && (step == 0 || message.chunk_count(i) <= left / step),
          "chunks without their corners");
    const std::size_t numbers = step == 0 ? 0 : message.chunk_count(i) * step;
    chunking.corners.resize(numbers);
    for (std::size_t k = 0; k < numbers; ++k) {
      check(!__builtin_add_overflow(*corner++, k < step ? 0 : chunking.corners[k - step],
                                    &chunking.corners[k]) &&
                chunking.corners[k] >= 0,
            "a corner that there is not");
    }
  }
  check(corner == message.corner().end(), "corners of no chunk");
  metadata.chunking.assign(message.chunking().begin(), message.chunking().end());
  check(metadata.chunking.size() == metadata.values.values.size(), "values without their chunks");
  std::map<std::uint32_t, Shape> ends;
  for (std::size_t i = 0; i < metadata.chunking.size(); ++i) {
    const SavedValue& value = metadata.values.values[i];
    if (value.kind == SavedValue::Kind::object) continue;
    check(metadata.chunking[i] < metadata.chunkings.size(), "no such chunking");
    const Chunking& chunking = metadata.chunkings[metadata.chunking[i]];
    check(chunking.rank == value.shape.size(), "chunks of another tensor");
    const auto end = ends.find(metadata.chunking[i]);
    const Shape& reached = end == ends.end() ? (ends[metadata.chunking[i]] = end_of(chunking)) : end->second;
    for (std::size_t d = 0; d < reached.size(); ++d) {
      check(reached[d] <= value.shape[d], "a chunk that reaches beyond its tensor");
    }
  }
  return metadata;
}

}  // namespace shardwright
