#include "storage/format/checkpoint_in_place.h"

#include <algorithm>
#include <iterator>
#include <optional>
#include <set>
#include <utility>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"
#include "storage/format/checksums_file.h"
#include "storage/format/hf_index.h"
#include "storage/format/manifest.h"
#include "storage/format/safetensors.h"
#include "storage/format/stored_file.h"
#include "storage/format/text_file.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t max_index_bytes = 1'000'000'000;

/// What transformers writes beside the weights of a model, sorted.
constexpr const char* names_beside[] = {
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "image_processor_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
};

/// Whether `text` has the form of `pattern`, in which each # stands for one digit or more, each ~ for
/// hexadecimal ones.
bool has_form(std::string_view text, std::string_view pattern) {
  std::size_t at = 0;
  for (const char c : pattern) {
    if (c != '#' && c != '~') {
      if (at == text.size() || text[at++] != c) return false;
      continue;
    }
    const std::string_view digits = std::string_view("0123456789abcdef").substr(0, c == '#' ? 10 : 16);
    const std::size_t begin = at;
    while (at < text.size() && digits.find(text[at]) != std::string_view::npos) ++at;
    if (at == begin) return false;
  }
  return at == text.size();
}

/// The names that transformers and torch give to files of weights, which are a checkpoint without an index.
bool is_weights_of_huggingface(const std::string& name) {
  return name == "model.safetensors" || has_form(name, "model-#-of-#.safetensors") ||
         has_form(name, "shard-#-model-#-of-#.safetensors");
}

/// Machines that write together may disagree about the time by so many seconds.
constexpr std::int64_t clock_skew = 60;

/// Whether it is there as it was written, as far as size and header tell, and the time of files whose names
/// others use as well. `list` names the file that lists it, and was written after it. One that somebody has
/// written since is theirs.
bool is_still_ours(const fs::path& directory, const StoredFile& file, const char* list) {
  try {
    const std::optional<struct stat> there = entry_at(directory / file.name);
    const std::optional<struct stat> listed = entry_at(directory / list);
    if (!there) return false;
    // A copy of a checkpoint has the times of the copying.
    const bool is_later = listed && there->st_mtime > listed->st_mtime + clock_skew;
    const bool is_all_header = file.header_bytes == file.size;  // then its checksum tells
    if (is_later && !is_name_of_shards(file.name) && !is_all_header) return false;
    return change_of(directory, file).empty();
  } catch (const Error& error) {
    if (refused_by_system(error)) throw;
    return false;
  }
}

/// The same of a file whose checksum is of all of it.
bool is_still_ours_whole(const fs::path& directory, const StoredFile& file) {
  try {
    return whole_file(directory, file.name) == file;
  } catch (const Error& error) {
    if (refused_by_system(error)) throw;
    return false;
  }
}

CheckpointInPlace sharded_checkpoint(const fs::path& directory) {
  CheckpointInPlace found{CheckpointKind::sharded, true, true, {manifest_name}, {}, {}, {}, 0};
  try {
    for (const StoredFile& file : read_manifest(directory).files) {
      (is_still_ours(directory, file, manifest_name) ? found.files : found.changed).push_back(file.name);
    }
    std::sort(found.changed.begin(), found.changed.end());
  } catch (const Error& error) {
    found.fault = error.what();
    found.fault_number = refused_by_system(error) ? error.system_error : 0;
  }
  return found;
}

/// Adds what the checksums beside an export say of it: it is ours if all of it is as it was written.
void add_exported(const fs::path& directory, const std::set<std::string>& names, const Checksums& checksums,
                  CheckpointInPlace& found) {
  std::set<std::string> ours;
  for (const StoredFile& file : checksums.files) {
    if (names.contains(file.name) && is_still_ours(directory, file, checksums_name)) ours.insert(file.name);
  }
  std::vector<std::string> beside;
  for (const StoredFile& file : checksums.beside) {
    if (!names.contains(fs::path(file.name).begin()->native()) || !is_still_ours_whole(directory, file))
      continue;
    beside.push_back(file.name);
  }
  if (found.is_listed) ours.insert(hf_index_name);  // it is ours if all that it names is
  found.is_ours = std::all_of(found.files.begin(), found.files.end(),
                              [&](const std::string& name) { return ours.contains(name); }) &&
                  std::all_of(found.with_weights.begin(), found.with_weights.end(), [&](const auto& name) {
                    return std::find(beside.begin(), beside.end(), name) != beside.end();
                  });
  found.files.insert(found.files.end(), ours.begin(), ours.end());
  if (found.is_ours) found.beside = std::move(beside);
}

CheckpointInPlace huggingface_checkpoint(const fs::path& directory, const std::set<std::string>& names) {
  CheckpointInPlace found{
      CheckpointKind::huggingface, false, names.contains(hf_index_name), {}, {}, {}, {}, 0};
  try {
    if (found.is_listed) {
      const fs::path path = directory / hf_index_name;
      found.files.emplace_back(hf_index_name);
      for (std::string& file :
           parse_hf_index(read_text(path, max_index_bytes), printable(path.native())).files)
        found.files.push_back(std::move(file));
    } else {
      std::copy_if(names.begin(), names.end(), std::back_inserter(found.files), is_weights_of_huggingface);
    }
    if (names.contains(modelopt_config_name)) found.with_weights = {modelopt_config_name};
    std::copy_if(std::begin(names_beside), std::end(names_beside), std::back_inserter(found.beside),
                 [&](const char* name) { return names.contains(name); });
    if (const std::optional<Checksums> checksums = read_checksums(directory))
      add_exported(directory, names, *checksums, found);
  } catch (const Error& error) {
    found.fault = error.what();
    found.fault_number = refused_by_system(error) ? error.system_error : 0;
  }
  if (names.contains(checksums_name)) found.files.emplace_back(checksums_name);
  return found;
}

CheckpointInPlace adapter(const fs::path& directory) {
  CheckpointInPlace found{CheckpointKind::adapter,
                          false,
                          false,
                          {"adapter_config.json", "adapter_model.safetensors"},
                          {},
                          {},
                          {},
                          0};
  try {
    std::uint64_t size = 0;
    const auto metadata = read_safetensors_header(directory / "adapter_model.safetensors", size).metadata;
    const auto writer = metadata.find(writer_key);
    const auto config = metadata.find(config_key);
    // Earlier releases did not note the configuration. One that somebody has edited since is theirs.
    found.is_ours =
        writer != metadata.end() &&
        (config == metadata.end() ||
         config->second == std::to_string(whole_file(directory, "adapter_config.json").header_checksum));
  } catch (const Error& error) {  // then it is not ours, unless nobody can tell
    if (refused_by_system(error)) {
      found.fault = error.what();
      found.fault_number = error.system_error;
    }
  }
  return found;
}

/// Of torch's, of a checkpoint of tens of thousands of tensors on thousands of ranks.
constexpr std::uint64_t most_metadata_bytes = std::uint64_t{4} << 30;

/// Whether torch's metadata is of the checkpoint that has these files: it holds their names, as they are.
bool metadata_names(const fs::path& directory, const std::vector<std::string>& files) {
  try {
    const std::string metadata = read_text(directory / torch_metadata_name, most_metadata_bytes);
    return std::all_of(files.begin(), files.end(), [&](const std::string& name) {
      return name == torch_metadata_name || metadata.find(name) != std::string::npos;
    });
  } catch (const Error&) {  // then nobody can tell
    return false;
  }
}

}  // namespace

bool is_name_of_shards(const std::string& name) { return name.starts_with("rank-"); }

std::string name_of(CheckpointKind kind) {
  switch (kind) {
    case CheckpointKind::sharded:
      return "a sharded checkpoint";
    case CheckpointKind::huggingface:
      return "a Hugging Face checkpoint";
    case CheckpointKind::torch:
      return "a checkpoint of torch's FileSystemWriter";
    case CheckpointKind::adapter:
      return "a LoRA adapter";
  }
  return {};
}

std::vector<CheckpointInPlace> checkpoints_in(const fs::path& directory) {
  std::vector<CheckpointInPlace> found;
  const std::vector<std::string> listed = names_in(directory);
  const std::set<std::string> names(listed.begin(), listed.end());
  if (names.contains(manifest_name)) found.push_back(sharded_checkpoint(directory));
  // Files of a sharded checkpoint may have torch's names of shards.
  std::set<std::string> others = names;
  if (!found.empty()) {
    for (const std::string& file : found.front().files) others.erase(file);
  }
  if (others.contains(hf_index_name) || std::any_of(others.begin(), others.end(), is_weights_of_huggingface))
    found.push_back(huggingface_checkpoint(directory, others));
  // One that the manifest names, as it was written, has been taken from the others.
  if (others.contains(torch_metadata_name)) {
    CheckpointInPlace torch{CheckpointKind::torch, false, false, {torch_metadata_name}, {}, {}, {}, 0};
    bool some_are_torchs = false;
    bool some_are_ours = false;
    for (const std::string& name : names) {
      const bool is_ours = has_form(name, "__#_#_~_#.distcp");
      const bool is_torchs = has_form(name, "__#_#.distcp");
      if (is_ours || is_torchs) torch.files.push_back(name);
      some_are_ours |= is_ours;
      some_are_torchs |= is_torchs;
    }
    torch.is_ours = some_are_ours && !some_are_torchs && metadata_names(directory, torch.files);
    found.push_back(std::move(torch));
  }
  if (names.contains("adapter_model.safetensors") || names.contains("adapter_config.json"))
    found.push_back(adapter(directory));
  for (CheckpointInPlace& checkpoint : found) {
    std::sort(checkpoint.files.begin(), checkpoint.files.end());
    checkpoint.files.erase(std::unique(checkpoint.files.begin(), checkpoint.files.end()),
                           checkpoint.files.end());
  }
  return found;
}

}  // namespace shardwright
