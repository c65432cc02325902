#pragma once

#include <cstdint>

namespace shardwright {

/// What the files of a sharded checkpoint look like to other programs.
enum class ShardFormat : std::uint8_t {
  safetensors,  ///< safetensors files, and bytes for what safetensors cannot hold
  torch,        ///< files and a .metadata that torch's FileSystemReader reads
};

}  // namespace shardwright
