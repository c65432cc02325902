#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner/catalog.h"
#include "planner/load_plan.h"

namespace shardwright {

/// A box that one rank reads for several.
struct SharedPiece {
  /// What a rank takes of it.
  struct Share {
    int rank = 0;
    std::uint32_t transfer = 0;  ///< index into that rank's transfers
    Box box;                     ///< inside the piece's box
    Box scale_box;               ///< inside the piece's scale box; rank 0 where there are none
  };

  std::uint32_t source = 0;  ///< index into Catalog::tensors
  std::int64_t scales = -1;  ///< the same of its scales; -1: none
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

/// Finds the source tensors of which the ranks, each for itself, would read more than all of them together:
/// because several want the same bytes, or because one reads over the bytes of another. Cuts those into
/// pieces that are read once and handed out. The readers' bytes are balanced; in a round no rank reads, sends
/// or receives more than `round_bytes`, or one piece. Every rank that calls it with the same transfers gets
/// the same result.
Cooperation cooperate(const std::vector<std::vector<Transfer>>& transfers_of_ranks, const Catalog& catalog,
                      std::uint64_t round_bytes);

/// Bytes that a share takes on its way to its rank: the elements of its box, row-major, then its scales.
std::uint64_t bytes_of_share(const SharedPiece& piece, const SharedPiece::Share& share,
                             const Catalog& catalog);

}  // namespace shardwright
