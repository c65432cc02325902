#include "storage/format/checksum.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace shardwright {

#ifdef SHARDWRIGHT_CHECKSUM_TARGETS
// The header's code is compiled once more for each of these instruction sets.
std::uint64_t checksum_with_avx2(const void* bytes, std::size_t count, std::uint64_t seed);
std::uint64_t checksum_with_avx512(const void* bytes, std::size_t count, std::uint64_t seed);
#endif

namespace {

using Checksum = std::uint64_t (*)(const void*, std::size_t, std::uint64_t);

std::uint64_t checksum_anywhere(const void* bytes, std::size_t count, std::uint64_t seed) {
  return XXH3_64bits_withSeed(bytes, count, seed);
}

Checksum fastest() {
#ifdef SHARDWRIGHT_CHECKSUM_TARGETS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")) return checksum_with_avx512;
  if (__builtin_cpu_supports("avx2")) return checksum_with_avx2;
#endif
  return checksum_anywhere;
}

}  // namespace

std::uint64_t checksum_of(const void* bytes, std::size_t count, std::uint64_t seed) {
  static const Checksum checksum = fastest();
  return checksum(bytes, count, seed);
}

}  // namespace shardwright
