#pragma once

#include <filesystem>
#include <vector>

namespace shardwright {

/// Makes the directory and those above it that are not there; returns those that it made, outermost first.
/// `directory` is absolute. Throws Error(io), naming the path, if the operating system refuses or a file is
/// there; none has then been made.
std::vector<std::filesystem::path> make_directories(const std::filesystem::path& directory);

/// Removes directories that were made for something that then was not written, as far as they are empty.
void remove_directories(const std::vector<std::filesystem::path>& made) noexcept;

}  // namespace shardwright
