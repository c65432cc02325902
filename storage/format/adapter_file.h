#pragma once

#include <filesystem>

#include "planner/names/catalog.h"

namespace shardwright {

/// The names that peft gives the two files of an adapter.
inline constexpr char adapter_weights_name[] = "adapter_model.safetensors";
inline constexpr char adapter_config_name[] = "adapter_config.json";

/// The catalog of an adapter's weights, or of any other one safetensors file. Throws Error: not_found for a
/// file that is missing; malformed, with file and tensor, for anything that breaks the format.
Catalog read_adapter_catalog(const std::filesystem::path& file);

}  // namespace shardwright
