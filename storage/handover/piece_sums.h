#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace shardwright {

/// Checksums of what a rank has handed over, for the next time to hand over only what has changed: XXH3 of
/// each block of about 4 KiB of encoded bytes, with the scales that it needs. A caller keeps one on each
/// rank, for each receiver, and gives it to each handing over.
///
/// What has been handed over by a run that was not finished counts as unknown, and is handed over again.
struct PieceSums {
  std::uint64_t plan = 0;                  ///< of what they are; another plan makes all unknown
  std::vector<std::size_t> first_of_unit;  ///< index into `sums`
  std::vector<std::uint64_t> sums;         ///< of each block
  std::vector<bool> is_known;              ///< whether the receiver has that block

  /// Makes all unknown, as when the receiver has been started anew.
  void forget() { *this = {}; }
};

}  // namespace shardwright
