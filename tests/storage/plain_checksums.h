#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "storage/format/checksum.h"

namespace shardwright {

/// The sums of a tensor's blocks (storage/format/row_checksums.h), from its bytes alone: a byte after
/// another, with a new cell wherever one has to begin.
inline std::vector<std::uint64_t> plain_sums(const std::string& bytes, std::uint64_t row_bytes,
                                             const std::vector<std::uint64_t>& cuts = {}) {
  constexpr std::uint64_t cell = 65'536;
  constexpr std::uint64_t block = 4'194'304;
  std::vector<std::uint64_t> sums((bytes.size() + block - 1) / block, 0);
  std::uint64_t begin = 0;
  for (std::uint64_t at = 1; at <= bytes.size(); ++at) {
    const std::uint64_t in_row = at % row_bytes;
    bool ends = at == bytes.size() || in_row == 0 || in_row % cell == 0 || at % block == 0;
    for (const std::uint64_t cut : cuts) ends = ends || in_row == cut;
    if (!ends) continue;
    sums[begin / block] += checksum_of(bytes.data() + begin, at - begin, begin);
    begin = at;
  }
  return sums;
}

}  // namespace shardwright
