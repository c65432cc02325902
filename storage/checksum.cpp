#include "storage/checksum.h"

#include <xxhash.h>

namespace shardwright {

std::uint64_t checksum_of(const void* bytes, std::size_t count) { return XXH3_64bits(bytes, count); }

}  // namespace shardwright
