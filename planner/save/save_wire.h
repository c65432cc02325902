#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/save/saved_values.h"

namespace shardwright {

/// Version of the wire form (planner/wire/save_plan.proto) that this build writes and reads. Its messages
/// live as long as one save: all ranks run the same version.
inline constexpr unsigned save_wire_version = 1;

/// What one rank has to save, as it goes to the coordinator. Boxes can only be read beside the values that
/// they are boxes of, which may come from another rank: a decoded state has `packed` items until then.
struct RankState {
  struct Holding {
    Hash values{};
    std::vector<std::uint64_t> packed;  ///< items; empty for values on a mesh

    bool operator==(const Holding&) const = default;
  };
  std::int64_t rank = 0;  ///< the job's number for it, which meshes speak of
  std::vector<Holding> holdings;
  std::vector<std::string> values;  ///< encoded SavedValues that holdings of this or other ranks refer to

  bool operator==(const RankState&) const = default;
};

/// The chunks that make up tensors; tensors that are cut alike share one.
struct Chunking {
  std::uint32_t rank = 0;             ///< dimensions
  std::vector<std::int64_t> corners;  ///< for each chunk its offsets, then its sizes; ordered by offset

  /// How many; a scalar is one chunk.
  std::size_t count() const { return rank == 0 ? 1 : corners.size() / (2 * std::size_t{rank}); }
  bool operator==(const Chunking&) const = default;
};

/// What a checkpoint holds, whoever wrote it: each value and the chunks that it consists of.
struct GlobalMetadata {
  SavedValues values;  ///< without mesh
  std::vector<std::uint32_t>
      chunking;  ///< for each value, index into `chunkings`; of no meaning for an object
  std::vector<Chunking> chunkings;

  bool operator==(const GlobalMetadata&) const = default;
};

// All encoders give equal bytes for equal input. All decoders throw Error(malformed) for bytes that are cut
// short, damaged or of another version.

std::string encode(const SavedValues& values);
SavedValues decode_values(std::string_view bytes);

std::string encode(const RankState& state);
RankState decode_state(std::string_view bytes);

/// Items as numbers and back. Throws Error(malformed) for items that do not lie inside their tensors.
std::vector<std::uint64_t> pack(const SavedItems& items, const SavedValues& values);
SavedItems unpack(const std::vector<std::uint64_t>& packed, const SavedValues& values);

/// Which items of each holding of a rank's state others write: sorted numbers.
using LeftToOthers = std::vector<std::vector<std::uint32_t>>;

/// A slice of an item, which its owners write in slices.
struct ItemCut {
  std::uint32_t holding = 0;
  std::uint32_t item = 0;
  std::uint32_t dimension = 0;
  std::int64_t begin = 0;  ///< within the item's box
  std::int64_t size = 0;

  bool operator==(const ItemCut&) const = default;
};

/// What a rank is to write: all that it holds but items that others write, and of some items a slice.
struct RankWrites {
  LeftToOthers left_to_others;
  std::vector<ItemCut> cuts;

  bool operator==(const RankWrites&) const = default;
};

std::string encode(const RankWrites& writes);
/// `items`: how many each holding of the rank has.
RankWrites decode_writes(std::string_view bytes, const std::vector<std::size_t>& items);

std::string encode(const GlobalMetadata& metadata);
GlobalMetadata decode_metadata(std::string_view bytes);

}  // namespace shardwright
