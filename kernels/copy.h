#pragma once

// Internal.

#include <cstddef>

namespace shardwright {

/// Copies bytes that are in no cache, such as those of another processor, to where nobody reads them soon.
/// Those that are in a cache are copied faster by place().
void copy_from_memory(const void* source, std::size_t bytes, void* destination);

}  // namespace shardwright
