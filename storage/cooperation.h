#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "planner/catalog.h"
#include "planner/load_plan.h"

namespace shardwright {

/// What one rank needs of one source tensor.
struct Need {
  std::uint32_t source = 0;  ///< index into Catalog::tensors
  std::int64_t scales = -1;  ///< the same of its scales; -1: none
  Box box;                   ///< of the source tensor
  Box scale_box;             ///< of the scales, for the whole box; rank 0 where there are none

  bool operator==(const Need&) const = default;
};

/// A plan's needs, one for each transfer, in the plan's order.
std::vector<Need> needs_of(const LoadPlan& plan);

/// Needs as bytes, for the other ranks: with them go the names and places of the tensors, so that ranks that see
/// different checkpoints notice.
std::string encode_needs(const std::vector<Need>& needs, const Catalog& catalog);

/// The needs that those bytes describe. Throws Error(mismatch) naming `rank` if it sees another checkpoint.
std::vector<Need> decode_needs(std::string_view bytes, const Catalog& catalog, int rank);

/// A box that one rank reads for several.
struct SharedPiece {
  /// What a rank takes of it.
  struct Share {
    int rank = 0;
    std::uint32_t transfer = 0;  ///< index into that rank's plan
    Box box;                     ///< inside SharedPiece::box
    Box scale_box;               ///< inside SharedPiece::scale_box
  };

  std::uint32_t source = 0;
  std::int64_t scales = -1;
  Box box;        ///< that is read
  Box scale_box;  ///< the scales that are read with it
  int reader = 0;
  std::vector<Share> shares;
};

/// How the ranks of one node read together.
struct Cooperation {
  std::vector<SharedPiece> pieces;         ///< in the order of the files
  std::vector<std::size_t> round_begins;   ///< pieces of round i: round_begins[i] .. round_begins[i + 1] - 1
  std::vector<std::vector<bool>> alone;    ///< [rank][transfer]: not shared, left to the rank itself

  std::size_t rounds() const { return round_begins.size() - 1; }
};

/// Finds the source tensors of which the ranks would together read more than needed, because several want the
/// same bytes or because each reads over the others', and cuts them into pieces that are read once and handed
/// out. The readers' bytes are balanced; in a round, no rank reads, sends or receives more than `round_bytes`
/// (or one piece). All ranks that call it with equal needs get equal results.
Cooperation cooperate(const std::vector<std::vector<Need>>& needs_of_ranks, const Catalog& catalog,
                      std::uint64_t round_bytes);

/// Bytes that a share takes on its way to its rank: the elements of its box, row-major, then its scales.
std::uint64_t bytes_of_share(const SharedPiece& piece, const SharedPiece::Share& share, const Catalog& catalog);

}  // namespace shardwright
