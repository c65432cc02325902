#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace shardwright {

/// Checksums of what a rank has handed over, for the next time to hand over only what has changed: XXH3 of
/// each block of encoded bytes, with the scales that it needs: a run of a row, or several rows where they are
/// short, or whole blocks of the encoding where these are larger. A caller keeps one on each rank, for each
/// receiver, and gives it to each handing over.
///
/// What has been handed over by a run that was not finished counts as unknown, and is handed over again.
struct PieceSums {
  /// Of a block at most, scales included. A checksum takes 8 bytes of memory; fewer bytes find scattered
  /// changes more closely.
  std::uint64_t block_bytes = 4096;

  std::uint64_t plan = 0;                  ///< of what they are; another plan makes all unknown
  std::vector<std::size_t> first_of_unit;  ///< index into `sums`
  std::vector<std::uint64_t> sums;         ///< of each block
  std::vector<bool> is_known;              ///< whether the receiver has that block

  /// Makes all unknown, as when the receiver has been started anew.
  void forget() {
    plan = 0;
    first_of_unit.clear();
    sums.clear();
    is_known.clear();
  }
};

}  // namespace shardwright
