#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace shardwright {

/// The key of a safetensors file's metadata that says that this library wrote an adapter.
inline constexpr char writer_key[] = "shardwright";

/// The key for the checksum (decimal) of the adapter_config.json that it wrote beside that.
inline constexpr char config_key[] = "shardwright.config";

/// The file by which torch's FileSystemReader finds what a checkpoint holds.
inline constexpr char torch_metadata_name[] = ".metadata";

/// Where ModelOpt says again what config.json says of how weights are encoded: of no others, so that it goes
/// with them.
inline constexpr char modelopt_config_name[] = "hf_quant_config.json";

/// The kinds of checkpoint that a directory can hold, each with the file that names its files.
enum class CheckpointKind {
  sharded,      ///< shardwright.manifest
  huggingface,  ///< model.safetensors.index.json; without it, files named as transformers or torch name them
  torch,        ///< .metadata, of torch's FileSystemWriter, that no manifest names; a save of ours with
                ///< torch's extensions is one, and is told by the names of its files
  adapter,      ///< none: adapter_model.safetensors and adapter_config.json, of peft
};

/// A checkpoint that is in a directory already.
struct CheckpointInPlace {
  CheckpointKind kind = CheckpointKind::sharded;
  bool is_ours = false;            ///< this library has written it
  bool is_listed = false;          ///< it has a manifest or index
  std::vector<std::string> files;  ///< relative; sorted. What its manifest or index names, and that itself;
                                   ///< of ours, what is as it was written: what others wrote since is theirs
  std::vector<std::string>
      beside;  ///< relative; sorted. What belongs to it by its name, such as config.json;
               ///< of ours, what it was written with and nobody has edited since
  std::vector<std::string>
      changed;           ///< relative; sorted. What its manifest names and somebody has written since
  std::string fault;     ///< why the manifest or index cannot be read; empty: it can
  int fault_number = 0;  ///< errno, if it is the operating system that refuses
  std::vector<std::string> with_weights =
      {};  ///< relative; what tells of its weights alone, and goes with them
};

/// Whether the name is one that only files of sharded checkpoints have.
bool is_name_of_shards(const std::string& name);

/// A few words for messages, such as "a sharded checkpoint".
std::string name_of(CheckpointKind kind);

/// The checkpoints of a directory, one for each kind that is there. A directory that is not there has none.
/// Throws Error (io) if the directory cannot be listed.
std::vector<CheckpointInPlace> checkpoints_in(const std::filesystem::path& directory);

}  // namespace shardwright
