#pragma once

#include <cstddef>

#include "planner/names/catalog.h"
#include "storage/boxes/placing.h"
#include "storage/load/cooperation.h"

namespace shardwright {

/// A share of a piece that lies in memory as `read`; `bytes` becomes what lies from its first element to its
/// end there, scales included.
BoxInMemory part_of_share(const SharedPiece& piece, const SharedPiece::Share& share, const BoxInMemory& read,
                          const Catalog& catalog, std::size_t& bytes);

/// Copies such a part, without gaps, to bytes_of_share() bytes of memory.
void pack(const SharedPiece& piece, const SharedPiece::Share& share, const BoxInMemory& part,
          const Catalog& catalog, std::byte* to);

/// The part that pack() has left there.
BoxInMemory packed_part(const SharedPiece& piece, const SharedPiece::Share& share, const std::byte* from,
                        const Catalog& catalog);

}  // namespace shardwright
