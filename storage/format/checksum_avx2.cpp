// checksum_of() for this instruction set; the file is compiled with its flags, and for x86-64 only.

#ifdef SHARDWRIGHT_CHECKSUM_TARGETS

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cstddef>
#include <cstdint>

namespace shardwright {

std::uint64_t checksum_with_avx2(const void* bytes, std::size_t count, std::uint64_t seed);

std::uint64_t checksum_with_avx2(const void* bytes, std::size_t count, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes, count, seed);
}

}  // namespace shardwright

#endif
