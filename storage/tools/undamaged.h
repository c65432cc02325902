#pragma once

#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "storage/format/manifest.h"

namespace shardwright {

/// Checks the bytes of these ranges against their checksums; `names[i]` is whose bytes ranges[i] are. Throws
/// one Error (malformed) that names all that is damaged.
void expect_undamaged(const Manifest& manifest, const std::filesystem::path& directory,
                      const std::vector<const FileRange*>& ranges, const std::vector<std::string>& names,
                      int threads);

/// Compares what the manifest says of these files (indices) with their sizes and headers: dtype, shape and
/// range of each chunk. Throws one Error (malformed) that names all that differs.
void expect_told_alike(const Manifest& manifest, const std::filesystem::path& directory,
                       const std::set<std::uint32_t>& files, int threads);

}  // namespace shardwright
