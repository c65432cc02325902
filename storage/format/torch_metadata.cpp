#include "storage/format/torch_metadata.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "planner/error.h"
#include "storage/files/output_file.h"
#include "storage/files/printable.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checksum.h"
#include "storage/format/pickle.h"
#include "storage/format/torch_stream.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

constexpr char dcp_metadata[] = "torch.distributed.checkpoint.metadata";
constexpr char dcp_version[] = "1.0.0";  // CURRENT_DCP_VERSION of torch/distributed/checkpoint/filesystem.py

/// An object of a dataclass, whose fields come until end_object().
void begin_object(Pickle& pickle, std::string_view module, std::string_view name) {
  pickle.shared_global(module, name);
  pickle.empty_tuple();
  pickle.new_object();
  pickle.empty_dict();
  pickle.mark();
}

void end_object(Pickle& pickle) {
  pickle.set_items();
  pickle.build();
}

/// A torch.Size.
void add_size(Pickle& pickle, const Shape& shape) {
  pickle.shared_global("torch", "Size");
  pickle.mark();  // of the arguments, which are one tuple
  pickle.mark();
  for (const std::int64_t size : shape) pickle.integer(size);
  pickle.tuple();
  pickle.tuple();
  pickle.reduce();
}

void add_properties(Pickle& pickle, const StoredTensor& tensor) {
  pickle.shared_global(dcp_metadata, "TensorProperties");
  pickle.empty_tuple();
  pickle.new_object();
  pickle.mark();
  pickle.shared_global("torch", tensor.dtype);
  pickle.shared_global("torch.serialization", "_get_layout");
  pickle.mark();
  pickle.shared_text("torch.strided");
  pickle.tuple();
  pickle.reduce();
  pickle.truth(tensor.requires_grad);
  pickle.shared_global(dcp_metadata, "_MEM_FORMAT_ENCODING");
  pickle.mark();
  pickle.integer(0);  // contiguous
  pickle.tuple();
  pickle.reduce();
  pickle.truth(tensor.pin_memory);
  pickle.tuple();
  pickle.build();
}

void add_tensor(Pickle& pickle, const StoredTensor& tensor) {
  begin_object(pickle, dcp_metadata, "TensorStorageMetadata");
  pickle.shared_text("properties");
  add_properties(pickle, tensor);
  pickle.shared_text("size");
  add_size(pickle, tensor.shape);
  pickle.shared_text("chunks");
  pickle.empty_list();
  pickle.mark();
  for (const StoredChunk& chunk : tensor.chunks) {
    begin_object(pickle, dcp_metadata, "ChunkStorageMetadata");
    pickle.shared_text("offsets");
    add_size(pickle, chunk.box.offset);
    pickle.shared_text("sizes");
    add_size(pickle, chunk.box.size);
    end_object(pickle);
  }
  pickle.appends();
  end_object(pickle);
}

void add_state_dict(Pickle& pickle, const Manifest& manifest) {
  pickle.empty_dict();
  pickle.mark();
  for (const StoredTensor& tensor : manifest.tensors) {
    pickle.shared_text(tensor.name);
    add_tensor(pickle, tensor);
  }
  for (const StoredObject& object : manifest.objects) {
    pickle.shared_text(object.name);
    pickle.shared_global(dcp_metadata, "BytesStorageMetadata");
    pickle.empty_tuple();
    pickle.new_object();
  }
  pickle.set_items();
}

void add_key(Pickle& pickle, const PathKey& key) {
  if (!key.is_number) return pickle.shared_text(key.text);
  std::int64_t number = 0;
  const char* const end = key.text.data() + key.text.size();
  const auto [stop, code] = std::from_chars(key.text.data(), end, number);
  if (code != std::errc() || stop != end)
    throw Error(ErrorKind::argument, "expected a number of a list, found " + in_quotes(key.text));
  pickle.integer(number);
}

void add_paths(Pickle& pickle, const TorchSave& save) {
  if (!save.paths) return pickle.none();
  pickle.empty_dict();
  pickle.mark();
  for (const auto& [name, keys] : *save.paths) {
    pickle.shared_text(name);
    pickle.mark();
    for (const PathKey& key : keys) add_key(pickle, key);
    pickle.tuple();
  }
  pickle.set_items();
}

/// Where something lies: `begin` is that of the stream.
void add_range(Pickle& pickle, const Manifest& manifest, const FileRange& range, std::uint64_t begin) {
  begin_object(pickle, "torch.distributed.checkpoint.filesystem", "_StorageInfo");
  pickle.shared_text("relative_path");
  pickle.shared_text(manifest.files[range.file].name);
  pickle.shared_text("offset");
  pickle.integer(static_cast<std::int64_t>(begin));
  pickle.shared_text("length");
  pickle.integer(static_cast<std::int64_t>(range.bytes.end - begin));
  end_object(pickle);
}

void add_ranges(Pickle& pickle, const Manifest& manifest) {
  pickle.empty_dict();
  pickle.mark();
  for (const StoredTensor& tensor : manifest.tensors) {
    for (std::size_t c = 0; c < tensor.chunks.size(); ++c) {
      const StoredChunk& chunk = tensor.chunks[c];
      begin_object(pickle, dcp_metadata, "MetadataIndex");
      pickle.shared_text("fqn");
      pickle.shared_text(tensor.name);
      pickle.shared_text("index");
      pickle.integer(static_cast<std::int64_t>(c));
      pickle.shared_text("offset");
      add_size(pickle, chunk.box.offset);
      end_object(pickle);
      const std::uint64_t header =
          torch_stream_header(tensor.name, tensor.dtype, tensor.element_bytes, chunk.box).size();
      add_range(pickle, manifest, chunk.range, chunk.range.bytes.begin - header);
    }
  }
  for (const StoredObject& object : manifest.objects) {
    begin_object(pickle, dcp_metadata, "MetadataIndex");
    pickle.shared_text("fqn");
    pickle.shared_text(object.name);
    pickle.shared_text("index");
    pickle.none();
    end_object(pickle);
    add_range(pickle, manifest, object.range, object.range.bytes.begin);
  }
  pickle.set_items();
}

void add_save(Pickle& pickle, const TorchSave& save) {
  begin_object(pickle, dcp_metadata, "StorageMeta");
  pickle.text("checkpoint_id");
  pickle.text(save.checkpoint_id);
  pickle.text("save_id");
  pickle.text(save.save_id);
  pickle.text("load_id");
  pickle.none();
  pickle.text("modules");
  pickle.empty_list();
  end_object(pickle);
}

}  // namespace

bool is_readable_by_torch(const Manifest& manifest) {
  return std::any_of(manifest.files.begin(), manifest.files.end(),
                     [](const StoredFile& file) { return file.name == torch_metadata_name; });
}

std::string torch_metadata_of(const Manifest& manifest, const TorchSave& save) {
  Pickle pickle;
  begin_object(pickle, dcp_metadata, "Metadata");
  pickle.text("state_dict_metadata");
  add_state_dict(pickle, manifest);
  pickle.text("planner_data");
  add_paths(pickle, save);
  pickle.text("storage_data");
  add_ranges(pickle, manifest);
  pickle.text("storage_meta");
  add_save(pickle, save);
  pickle.text("version");
  pickle.text(dcp_version);
  end_object(pickle);
  return std::move(pickle).finish();
}

void add_torch_metadata(const fs::path& directory, Manifest& manifest, const TorchSave& save, bool sync) {
  const std::string content = torch_metadata_of(manifest, save);
  write_whole_file(directory / torch_metadata_name, content, sync);
  manifest.files.push_back(
      {torch_metadata_name, content.size(), content.size(), checksum_of(content.data(), content.size())});
}

}  // namespace shardwright
