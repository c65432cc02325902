#pragma once

#include <filesystem>
#include <string>

#include "planner/save/write_results.h"

namespace shardwright {

/// How the file of this name in the directory differs from the one that was written, as far as its size and
/// its header tell: "of 12 bytes" in place of others, or with another header. Empty: it does not. Throws
/// Error as InputFile.
std::string change_of(const std::filesystem::path& directory, const StoredFile& written);

}  // namespace shardwright
