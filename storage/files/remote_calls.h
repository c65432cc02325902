#pragma once

#include <filesystem>

#include "storage/files/remote_objects.h"

namespace shardwright {

/// The calls that set_remote_calls() was given. Throws Error(argument), naming the address, where none were
/// set.
const RemoteCalls& remote_calls(const std::filesystem::path& address);

/// Whether this is an address with a scheme, such as s3://bucket/run. file:// is none.
bool is_remote(const std::filesystem::path& path);

/// Requests for small things, such as headers, that are worth having under way at a time.
inline constexpr int small_requests_at_once = 32;

/// `threads` for what lies at this path: those that wait for a store may be many.
int threads_for(const std::filesystem::path& path, int threads);

}  // namespace shardwright
