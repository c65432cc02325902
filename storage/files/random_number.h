#pragma once

#include <cstdint>

namespace shardwright {

/// 64 bits from the kernel's generator (getrandom(2)), for names that nobody else has. Throws Error(io) if it
/// gives none.
std::uint64_t random_number();

}  // namespace shardwright
