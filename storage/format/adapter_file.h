#pragma once

#include <filesystem>

#include "planner/names/catalog.h"
#include "storage/format/adapter_config.h"

namespace shardwright {

/// The names that peft gives the two files of an adapter.
inline constexpr char adapter_weights_name[] = "adapter_model.safetensors";
inline constexpr char adapter_config_name[] = "adapter_config.json";

/// What an adapter's two files say.
struct StoredAdapter {
  AdapterConfig config;
  Catalog catalog;  ///< of its weights
};

/// Reads both, of the weights the header. Throws Error: not_found for a directory or file that is missing;
/// malformed, with file and tensor, for anything that breaks the format; otherwise as read_adapter_config().
StoredAdapter read_adapter(const std::filesystem::path& directory);

}  // namespace shardwright
