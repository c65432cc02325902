#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "planner/lora/adapter.h"

namespace shardwright {

/// Reads adapter_config.json of a directory, and what nemo-automodel notes beside it. Throws Error: not_found
/// where there is none; malformed for what is no JSON of the kind; mismatch, with the setting, for other than
/// a plain LoRA adapter of released weights, such as DoRA or a bias; io as InputFile.
AdapterConfig read_adapter_config(const std::filesystem::path& directory);

/// The same of a text, without the note; `file` is what messages call it.
AdapterConfig parse_adapter_config(std::string_view text, const std::string& file);

}  // namespace shardwright
