#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "planner/error.h"

namespace shardwright {

/// "a/./b//c" as "a/b/c"; empty for a path that is absolute, leaves the directory or names no file in it.
std::string path_inside(const std::string& text);

// Of what is at an address, an object counts as a regular file, and as a folder what has names below it.

/// What a name is, links not followed; nothing if there is no such entry. Throws Error(io), naming it, if the
/// operating system refuses to say: that is no absence.
std::optional<struct stat> entry_at(const std::filesystem::path& path);

/// The same with links followed; a link that leads nowhere, or in a circle, is no entry.
std::optional<struct stat> target_at(const std::filesystem::path& path);

/// Whether a directory itself, and no link to one, has this name. Throws as entry_at().
bool is_folder(const std::filesystem::path& path);

/// Whether both names are there and of one file, links not followed. Throws as entry_at().
bool are_one_file(const std::filesystem::path& one, const std::filesystem::path& other);

/// The names in a directory, sorted; none if it is not there, or is no directory. In the place of
/// std::filesystem's iterators, which end the process where memory is short. Throws Error(io), naming it.
std::vector<std::string> names_in(const std::filesystem::path& directory);

/// The names of all files below a directory, relative to it, sorted. Links are not followed. Throws
/// Error(io), naming it.
std::vector<std::string> files_below(const std::filesystem::path& directory);

/// Whether an error tells that the operating system refused (a bad disk, no permission, too many open files),
/// and so nothing of what is there: no file, no regular one, or one that breaks its format.
bool refused_by_system(const Error& error);

/// Removes what has this name, and all in it if that is a directory, as far as the operating system allows.
/// Links are not followed.
void remove_with_all_in_it(const std::filesystem::path& path);

}  // namespace shardwright
