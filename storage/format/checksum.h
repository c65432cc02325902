#pragma once

#include <cstddef>
#include <cstdint>

namespace shardwright {

/// What one checksum covers: so many bytes of a chunk, so that threads can share a large one, and a damaged
/// place can be told. Part of the format (storage/format/manifest.proto).
inline constexpr std::uint64_t checksum_block_bytes = std::uint64_t{4} << 20;

/// XXH3, 64 bits (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md).
std::uint64_t checksum_of(const void* bytes, std::size_t count, std::uint64_t seed = 0);

/// How many blocks so many bytes are.
constexpr std::uint64_t checksum_blocks(std::uint64_t bytes) {
  return bytes / checksum_block_bytes + (bytes % checksum_block_bytes != 0 ? 1 : 0);
}

}  // namespace shardwright
