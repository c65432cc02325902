#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "storage/files/remote_objects.h"

namespace shardwright {

/// The calls that set_remote_calls() was given. Throws Error(argument), naming the address, where none were
/// set.
const RemoteCalls& remote_calls(const std::filesystem::path& address);

/// Those by which something is written there. Throws as remote_calls(), and where they write nothing.
const RemoteCalls& writing_calls(const std::filesystem::path& address);

/// Bytes of an object, of the version that was found. Throws as RemoteCalls::read.
std::string bytes_of_object(const std::string& address, const RemoteObject& found, std::uint64_t begin,
                            std::uint64_t count);

/// All of them.
std::string bytes_of_object(const std::string& address, const RemoteObject& found);

/// Listings of some servers leave out the quotes of etags that answers have.
bool is_same_version(std::string_view version, std::string_view other);

/// Whether this is an address with a scheme, such as s3://bucket/run. file:// is none.
bool is_remote(const std::filesystem::path& path);

/// Requests for small things, such as headers, that are worth having under way at a time.
inline constexpr int small_requests_at_once = 32;

/// `threads` for what lies at this path: those that wait for a store may be many.
int threads_for(const std::filesystem::path& path, int threads);

}  // namespace shardwright
