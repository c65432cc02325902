#pragma once

#include <cstdint>
#include <optional>

namespace shardwright {

/// The share of a file's pages that are in the page cache, 0 to 1. Of all pages where the kernel counts them;
/// of a sample before Linux 6.5, and for a file that this process could not write. Nothing where the file
/// system does not tell either.
std::optional<double> fraction_in_page_cache(int descriptor, std::uint64_t file_bytes);

/// A descriptor for reading the file of that path past the page cache (O_DIRECT), at offsets, lengths and
/// addresses that are multiples of direct_alignment; -1 where the file system or its alignment does not allow
/// it, and where the path no longer leads to the file of `descriptor`. The caller closes it.
int open_direct(const char* path, int descriptor);

inline constexpr std::uint64_t direct_alignment = 4096;

}  // namespace shardwright
