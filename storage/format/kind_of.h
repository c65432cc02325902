#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace shardwright {

/// What a path is, of all that a load, an export, a conversion or a check may be given.
enum class PathKind : std::uint8_t {
  nothing,            ///< not there, or none of the others
  sharded,            ///< shardwright.manifest
  torch,              ///< .metadata, of torch's FileSystemWriter
  torch_of_ranks,     ///< __0.metadata, of dcp.save(use_collectives=False): each rank's own
  torch_safetensors,  ///< shards of torch's HuggingFaceStorageWriter(save_distributed=True), by their names
  huggingface,        ///< other safetensors, or their index
  adapter,            ///< adapter_model.safetensors alone
};

/// The first of them whose mark is there, in the order manifest, .metadata, __0.metadata, names of shards,
/// other safetensors: the one place that says which comes first where a directory holds several. Looks at
/// names alone. Throws Error(io) if the operating system refuses to say.
PathKind kind_of(const std::filesystem::path& path);

/// "sharded", "torch", "torch_of_ranks", "torch_safetensors", "huggingface", "adapter", "nothing".
std::string_view name_of(PathKind kind);

/// Whether it holds a trainer's own tensors, under the trainer's names.
bool is_of_trainer(PathKind kind);

}  // namespace shardwright
