#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "storage/write/files_beside.h"

namespace shardwright {

/// JSON: the name of each file that write_beside() has written → checksums of its contents (XXH3, 64 bits),
/// the newest last. A file of another content is somebody else's, be it that they have edited ours.
inline constexpr char written_beside_name[] = "shardwright.beside";

/// To be called before anything is written. `contents`: what is going to be in files, by their names;
/// nothing: not known yet. `overwrite`: true replaces all files, nothing those that write_beside() has
/// written, false none. Throws Error(io, EEXIST) that names files of others, with the `advice`; one that has
/// the content already is none.
void expect_replaceable(const std::filesystem::path& folder,
                        const std::map<std::string, std::optional<std::string>>& contents,
                        std::optional<bool> overwrite, const std::string& advice);

/// Writes files beside a checkpoint, such as config.json, each in one step, and by what they are known again.
/// Throws Error(io), naming the file, if the operating system refuses.
void write_beside(const std::filesystem::path& folder, const FileContents& contents);

}  // namespace shardwright
