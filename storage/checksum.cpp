#include "storage/checksum.h"

#include <xxhash.h>

namespace shardwright {

std::uint64_t checksum_of(const void* bytes, std::size_t count, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes, count, seed);
}

}  // namespace shardwright
