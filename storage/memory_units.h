#pragma once

#include <cstdint>

namespace shardwright {

/// Bytes that a processor fetches at a time. What several of them write to lies in lines of its own.
inline constexpr std::uint64_t cache_line = 64;

/// Bytes of the smallest page that a system gives memory in.
inline constexpr std::uint64_t page = 4096;

}  // namespace shardwright
