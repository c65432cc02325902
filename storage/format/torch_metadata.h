#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "planner/save/saved_values.h"
#include "storage/format/manifest.h"

namespace shardwright {

/// What torch's metadata tells of a save beside tensors and objects.
struct TorchSave {
  std::string checkpoint_id;
  std::string save_id;

  /// For each name the keys of the nested state dict that it is made of; nothing: the state dict was flat.
  std::optional<std::vector<std::pair<std::string, std::vector<PathKey>>>> paths;
};

/// Whether the checkpoint is in torch's format, too: it has such a file, and every tensor is a torch
/// stream.
bool is_readable_by_torch(const Manifest& manifest);

/// A pickle of torch.distributed.checkpoint.metadata.Metadata, as torch 2.13's FileSystemWriter has it, of a
/// checkpoint whose tensors are torch streams (storage/format/torch_stream.h).
std::string torch_metadata_of(const Manifest& manifest, const TorchSave& save);

/// Writes it into the directory, flushed to the device if `sync`, and lists it among the files of the
/// manifest. All of it counts as a header, so that its checksum is that of the whole file.
void add_torch_metadata(const std::filesystem::path& directory, Manifest& manifest, const TorchSave& save,
                        bool sync);

}  // namespace shardwright
