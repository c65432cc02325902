#pragma once

#include <filesystem>

#include "planner/names/catalog.h"

namespace shardwright {

/// Reads what a Hugging Face checkpoint directory holds: the index (model.safetensors.index.json) if there is
/// one, the headers of the safetensors files it names (otherwise of all *.safetensors in the directory), and
/// config.json. Headers are read by `threads` threads (0: as many as there are processors). Only headers are
/// read, no tensor data.
///
/// Packed weights are seen as see_packed_weights() says.
///
/// Throws Error: not_found for a directory that is missing or holds no safetensors; malformed, with the file
/// and the tensor, for anything that breaks the format or for an index that does not agree with the files.
Catalog read_catalog(const std::filesystem::path& directory, int threads = 0);

}  // namespace shardwright
