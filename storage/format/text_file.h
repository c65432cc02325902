#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace shardwright {

class InputFile;

/// All of a text file of a checkpoint. Throws Error: malformed if it is larger than `max_bytes`, or a pointer
/// of Git LFS; otherwise as InputFile does.
std::string read_text(const std::filesystem::path& path, std::uint64_t max_bytes);

/// The same of a file that is open.
std::string read_text(const InputFile& file, std::uint64_t max_bytes);

}  // namespace shardwright
