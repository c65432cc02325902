#include "storage/format/kind_of.h"

#include <algorithm>
#include <string>
#include <vector>

#include "storage/files/entries.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/hf_index.h"
#include "storage/format/manifest.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view adapter_name = "adapter_model.safetensors";

bool are_digits(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

/// shard-00001-model-00001-of-00001.safetensors
bool is_shard_of_torch(std::string_view name) {
  constexpr std::string_view form = "shard-#####-model-#####-of-#####.safetensors";
  return name.size() == form.size() &&
         std::equal(form.begin(), form.end(), name.begin(), [](char expected, char found) {
           return expected == '#' ? are_digits({&found, 1}) : expected == found;
         });
}

}  // namespace

PathKind kind_of(const fs::path& path) {
  if (has_manifest(path)) return PathKind::sharded;
  if (target_at(path / torch_metadata_name)) return PathKind::torch;
  if (target_at(path / (std::string("__0") + torch_metadata_name))) return PathKind::torch_of_ranks;
  const std::vector<std::string> names = names_in(path);
  if (std::any_of(names.begin(), names.end(), is_shard_of_torch)) return PathKind::torch_safetensors;
  const auto is_of_huggingface = [](const std::string& name) {
    return name == hf_index_name || (name.ends_with(".safetensors") && name != adapter_name);
  };
  if (std::any_of(names.begin(), names.end(), is_of_huggingface)) return PathKind::huggingface;
  const bool has_adapter = std::find(names.begin(), names.end(), adapter_name) != names.end();
  return has_adapter ? PathKind::adapter : PathKind::nothing;
}

std::string_view name_of(PathKind kind) {
  switch (kind) {
    case PathKind::nothing:
      return "nothing";
    case PathKind::sharded:
      return "sharded";
    case PathKind::torch:
      return "torch";
    case PathKind::torch_of_ranks:
      return "torch_of_ranks";
    case PathKind::torch_safetensors:
      return "torch_safetensors";
    case PathKind::huggingface:
      return "huggingface";
    case PathKind::adapter:
      return "adapter";
  }
  return {};
}

bool is_of_trainer(PathKind kind) {
  return kind == PathKind::sharded || kind == PathKind::torch || kind == PathKind::torch_of_ranks ||
         kind == PathKind::torch_safetensors;
}

}  // namespace shardwright
