#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "storage/boxes/box_reading.h"

namespace shardwright {

/// A box that one rank reads for several.
struct SharedPiece {
  /// What a rank takes of the piece.
  struct Share {
    int rank = 0;
    std::uint32_t transfer = 0;  ///< index into that rank's transfers
    Box box;                     ///< inside the piece's box
    Box scale_box;               ///< inside the piece's scale box; rank 0 where there are none
  };

  std::uint32_t source = 0;  ///< index into Catalog::tensors
  std::int64_t scales = -1;  ///< the same of its scales; -1: none
  Shape shape;               ///< that the source is seen in: see Transfer::source_view
  Shape scale_shape;         ///< the same of its scales
  Box box;                   ///< that is read
  Box scale_box;             ///< the scales that are read with it
  int reader = 0;
  std::vector<Share> shares;
};

/// How ranks read together.
struct Cooperation {
  std::vector<SharedPiece> pieces;        ///< in the order of the files
  std::vector<std::size_t> round_begins;  ///< round i is pieces round_begins[i] .. round_begins[i + 1] - 1
  std::vector<std::vector<bool>> shared;  ///< [rank][transfer]; the others are left to the rank itself

  std::size_t rounds() const { return round_begins.size() - 1; }
};

/// How ranks that read together hand on what they have read.
enum class HandingOver : std::uint8_t {
  in_rounds,         ///< the reader sends each rank its share: see CooperativeLoad::read()
  by_shared_memory,  ///< all ranks are of one node, and take their shares from memory: see PieceRing
};

/// Rounds that there is room for at a time.
inline constexpr std::size_t buffers_of_rounds = 4;

/// What each rank can do, for all to agree on.
struct CooperationTerms {
  std::uint64_t piece_bytes = 0;           ///< that it can stage at a time
  std::uint64_t round_bytes = 0;           ///< that it has room for on their way
  std::vector<std::string> files_on_disk;  ///< names of files that it found outside the page cache

  bool operator==(const CooperationTerms&) const = default;
};

/// How the reading is cut up: the same on all ranks.
struct CooperationLimits {
  std::vector<ReadCosts> costs;  ///< by index into Catalog::files
  std::uint64_t piece_bytes = 0;
  std::uint64_t round_bytes = 0;
  bool cached_files_apart = false;  ///< each rank reads for itself what lies in the page cache of all
};

/// What all ranks can do. A file on a disk for one is so for all. Of rounds, a piece that goes to all others
/// fits one.
CooperationLimits agreed_limits(const std::vector<CooperationTerms>& terms_of_ranks, const Catalog& catalog,
                                HandingOver way = HandingOver::in_rounds);

/// Reading the piece into staging, as a task whose `transfer` is not set.
ReadTask task_of(const SharedPiece& piece, const Catalog& catalog, const std::vector<ReadCosts>& costs);

/// Finds the source tensors of which the ranks, each for itself, would read more than all of them together:
/// because several want the same bytes, or because one reads over the bytes of another. Cuts those into
/// pieces that are read once and handed out, of at most piece_bytes of staging. The readers' bytes are
/// balanced; in a round no rank reads, sends or receives more than round_bytes, or one piece. Every rank that
/// calls it with the same arguments gets the same result.
Cooperation cooperate(const std::vector<std::vector<Transfer>>& transfers_of_ranks, const Catalog& catalog,
                      const CooperationLimits& limits);

/// Bytes that a share takes on its way to its rank: the elements of its box, row-major, then its scales.
std::uint64_t bytes_of_share(const SharedPiece& piece, const SharedPiece::Share& share,
                             const Catalog& catalog);

}  // namespace shardwright
