#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace shardwright {

/// The folder in which a save keeps what it has not published yet.
inline constexpr char unfinished_save_name[] = ".shardwright.saving";

/// Throws Error (argument) for what is the address of something elsewhere, such as s3://bucket/x. So is
/// s3:/bucket/x, which Python's pathlib makes of it.
void expect_local_path(const std::filesystem::path& path);

/// Throws as expect_local_path(), but takes addresses such as s3://bucket/x, where this program can reach
/// what is there: see storage/files/remote_objects.h.
void expect_location(const std::filesystem::path& path);

/// The path from the root on, links and ".." resolved as far as there is something; the rest need not be
/// there. An address is what it was. Throws Error (io), naming it, if the operating system refuses.
std::filesystem::path resolved_path(const std::filesystem::path& path);

/// What to do about a directory that is not there: says so where it looks like a Hugging Face hub id.
std::string advice_for_absent(const std::filesystem::path& directory);

/// What a directory without safetensors holds in their place, and what to do: "none; this directory is
/// empty: ...".
std::string found_in_place_of_safetensors(const std::filesystem::path& directory);

/// True where shard files lie beside an unfinished save without the manifest that would make them a
/// checkpoint.
bool is_unfinished_save(const std::filesystem::path& directory);

/// Throws Error (malformed) if the text of a file is that of a Git LFS pointer; `file` is what the message
/// calls it.
void expect_no_git_lfs_pointer(std::string_view text, const std::string& file);

}  // namespace shardwright
