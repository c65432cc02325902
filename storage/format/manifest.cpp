#include "storage/format/manifest.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "planner/error.h"
#include "planner/names/torch_dtypes.h"
#include "planner/problems.h"
#include "planner/save/chunks.h"
#include "planner/save/rank_states.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/output_file.h"
#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"
#include "storage/files/uninterrupted.h"
#include "storage/format/checkpoint_in_place.h"
#include "storage/format/checkpoint_place.h"
#include "storage/format/text_file.h"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t max_manifest_bytes = std::uint64_t{1} << 31;  // protobuf's own limit

StoredTensor stored_tensor(const SavedValue& value) {
  const TensorProperties& properties = value.properties;
  const std::optional<DType> dtype = dtype_of_torch(properties.dtype);
  return {value.fqn,
          properties.dtype,
          dtype ? std::string(name_of(*dtype)) : "",
          properties.element_bytes,
          value.shape,
          (properties.flags & TensorProperties::requires_grad) != 0,
          (properties.flags & TensorProperties::pin_memory) != 0,
          {}};
}

/// Replicas that a planner has let several ranks write: one is as good as the other.
void keep_each_box_once(std::vector<StoredChunk>& chunks) {
  const auto box = [](const StoredChunk& chunk) { return std::tie(chunk.box.offset, chunk.box.size); };
  std::stable_sort(chunks.begin(), chunks.end(),
                   [&](const StoredChunk& a, const StoredChunk& b) { return box(a) < box(b); });
  const auto end = std::unique(chunks.begin(), chunks.end(),
                               [&](const StoredChunk& a, const StoredChunk& b) { return box(a) == box(b); });
  chunks.erase(end, chunks.end());
}

}  // namespace

bool has_manifest(const fs::path& directory) {
  const fs::path path = directory / manifest_name;
  if (is_remote(path)) {
    try {
      remote_calls(path).head(path.native());
      return true;
    } catch (const Error& error) {
      if (error.kind == ErrorKind::not_found) return false;
      throw;
    }
  }
  struct stat status {};  // of the link, if it is one: one that leads nowhere is for reading it to tell
  if (uninterrupted([&] { return ::lstat(path.c_str(), &status); }) == 0) return true;
  if (errno == ENOENT || errno == ENOTDIR) return false;
  const int code = errno;
  throw Error(ErrorKind::io,
              printable(path.native()) + ": cannot look for a manifest: " + std::strerror(code), code);
}

Manifest read_manifest(const fs::path& directory) {
  const fs::path path = directory / manifest_name;
  return decode_manifest(read_text(path, max_manifest_bytes), printable(path.native()));
}

std::uint64_t read_order(const fs::path& directory) {
  // Protobuf writes fields in the order of their numbers: the tag of field 3, and 8 bytes, little endian.
  constexpr char tag = (3 << 3) | 1;
  const InputFile file(directory / manifest_name);
  char end[9];
  if (file.size() < sizeof end) return 0;
  file.read(file.size() - sizeof end, end, sizeof end);
  std::uint64_t order = 0;
  std::memcpy(&order, end + 1, sizeof order);
  return end[0] == tag ? order : 0;
}

void write_manifest(const fs::path& directory, const Manifest& manifest, bool sync) {
  write_whole_file(directory / manifest_name, encode_manifest(manifest), sync);
}

Manifest manifest_of(const std::vector<WriteResults>& ranks) {
  Manifest manifest;
  Problems problems;
  struct Known {
    const SavedValue* value;
    std::int64_t rank;
    std::size_t tensor;  // its place in the manifest
  };
  std::unordered_map<std::string_view, Known> known;
  std::set<std::string_view> files;
  for (const WriteResults& of_rank : ranks) {
    const auto first_file = static_cast<std::uint32_t>(manifest.files.size());
    for (const StoredFile& file : of_rank.files) {
      if (!files.insert(file.name).second)
        throw Error(ErrorKind::argument, "two ranks have written a file " + in_quotes(file.name));
      manifest.files.push_back(file);
    }
    const std::int64_t* corner = of_rank.items.corners.data();
    for (std::size_t i = 0; i < of_rank.ranges.size(); ++i) {
      const SavedValue& value = of_rank.values.values[of_rank.items.value[i]];
      const std::size_t rank = value.shape.size();
      const Box box = box_at(corner, rank);
      corner += 2 * rank;
      FileRange range = of_rank.ranges[i];
      range.file += first_file;
      const bool is_object = value.kind == SavedValue::Kind::object;
      const auto [entry, is_new] =
          known.emplace(value.fqn, Known{&value, of_rank.rank, is_object ? 0 : manifest.tensors.size()});
      if (!agree(*entry->second.value, value)) {
        problems.add(value.fqn + ": expected " + dtype_and_shape_of(*entry->second.value) + " as on rank " +
                     std::to_string(entry->second.rank) + ", found " + dtype_and_shape_of(value) +
                     " on rank " + std::to_string(of_rank.rank));
      } else if (is_object) {
        if (is_new) manifest.objects.push_back({value.fqn, std::move(range)});
      } else {
        if (is_new) manifest.tensors.push_back(stored_tensor(value));
        manifest.tensors[entry->second.tensor].chunks.push_back({box, std::move(range)});
      }
    }
  }
  problems.throw_if_any(ErrorKind::mismatch, "the ranks have not written one state between them:");
  for (StoredTensor& tensor : manifest.tensors) keep_each_box_once(tensor.chunks);
  return manifest;
}

Manifest manifest_of(const std::vector<std::string>& told, const std::vector<std::string>& names) {
  std::vector<WriteResults> results;
  results.reserve(told.size());
  for (const std::string& bytes : told) results.push_back(decode_results(bytes));
  Manifest manifest = manifest_of(results);
  std::unordered_set<std::string_view> written;
  for (const StoredTensor& tensor : manifest.tensors) written.insert(tensor.name);
  for (const StoredObject& object : manifest.objects) written.insert(object.name);
  Problems problems;
  for (const std::string& name : names) {
    if (!written.contains(name)) problems.add(name);
  }
  problems.throw_if_any(ErrorKind::mismatch, "no rank has written these, which the plan has:");
  return manifest;
}

Catalog catalog_of(const Manifest& manifest, const fs::path& directory) {
  Catalog catalog;
  catalog.directory = directory;
  Problems problems;
  std::map<std::string, RemoteObject> listed;
  if (is_remote(directory)) {
    for (RemoteObject& object : remote_calls(directory).list(directory.native()))
      listed.emplace(object.name, std::move(object));
  }
  for (const StoredFile& file : manifest.files) {
    catalog.files.push_back({file.name, file.size});
    const fs::path path = directory / file.name;
    if (const auto found = listed.find(file.name); found != listed.end() && found->second.size == file.size) {
      catalog.files.back().version = found->second.version;
      continue;
    }
    try {
      // Torch's, which nothing is read from here. Another one is that of another checkpoint, unless a save
      // has given its names and not ended.
      if (file.name == torch_metadata_name && (!entry_at(path) || entry_at(directory / unfinished_save_name)))
        continue;
      const std::uint64_t size = size_of_file(path);
      if (size == file.size) continue;
      if (size < 1000) read_text(path, size);  // throws if it stands for the file
      if (file.name == torch_metadata_name) {
        problems.add(printable(path.native()) + ": expected the " + std::to_string(file.size) +
                     " bytes that were saved with " + manifest_name + ", found " + std::to_string(size) +
                     ": another program has saved here since; remove the file that is not meant");
        continue;
      }
      problems.add(printable(path.native()) + ": expected " + std::to_string(file.size) + " bytes, found " +
                   std::to_string(size));
    } catch (const Error& error) {
      if (refused_by_system(error)) throw;
      problems.add(error.what());
    }
  }
  problems.throw_if_any(ErrorKind::malformed, "the checkpoint is not whole");
  std::vector<const StoredChunk*> chunks;
  for (const StoredTensor& tensor : manifest.tensors) {
    const auto dtype = dtype_named(tensor.safetensors_dtype);
    for (const StoredChunk& chunk : tensor.chunks) {
      chunks.push_back(dtype ? &chunk : nullptr);
      SourceTensor source{tensor.name,      dtype.value_or(DType::U8), chunk.box.size,       chunk.box.offset,
                          chunk.range.file, chunk.range.bytes.begin,   chunk.range.bytes.end};
      if (!dtype) {
        source.shape.push_back(tensor.element_bytes);
        source.offset.push_back(0);
      }
      catalog.tensors.push_back(std::move(source));
    }
  }
  std::vector<std::size_t> order(chunks.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::tie(catalog.tensors[a].name, catalog.tensors[a].offset) <
           std::tie(catalog.tensors[b].name, catalog.tensors[b].offset);
  });
  std::vector<SourceTensor> sorted;
  std::vector<RowChecksums> checksums;
  for (const std::size_t index : order) {
    sorted.push_back(std::move(catalog.tensors[index]));
    checksums.emplace_back();
    // Tensors of other dtypes than safetensors' have one dimension more here than what was summed up.
    if (manifest.version >= 2 && chunks[index] != nullptr)
      checksums.back().sums = chunks[index]->range.bytes.checksums;
  }
  catalog.tensors = std::move(sorted);
  catalog.checksums = std::make_shared<const std::vector<RowChecksums>>(std::move(checksums));
  return catalog;
}

}  // namespace shardwright
