#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace shardwright {

/// The names of a directory's entries, but for . and .., sorted. In the place of std::filesystem's iterators,
/// which end the process where memory is short, and take an interrupted call for the end. Throws Error:
/// not_found, with errno, if there is no such directory; io, with errno.
std::vector<std::string> names_in(const std::filesystem::path& directory);

/// Removes a directory and what is in it, as far as the system allows, following no links; a file or link of
/// that name too.
void remove_with_all_in_it(const std::filesystem::path& path);

}  // namespace shardwright
