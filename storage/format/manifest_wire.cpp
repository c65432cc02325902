// The manifest as protobuf. What is read is checked here, so that nothing behind it has to.

#include <google/protobuf/stubs/logging.h>

#include <algorithm>
#include <limits>
#include <set>
#include <unordered_set>
#include <utility>

#include "planner/error.h"
#include "storage/files/printable.h"
#include "storage/format/checksum.h"
#include "storage/format/manifest.h"
#include "storage/format/manifest.pb.h"
#include "storage/format/safetensors.h"

namespace shardwright {

namespace {

void set(wire::FileRange* to, const FileRange& range) {
  to->set_file(range.file);
  to->set_begin(range.bytes.begin);
  to->set_end(range.bytes.end);
  to->mutable_checksums()->Assign(range.bytes.checksums.begin(), range.bytes.checksums.end());
}

class Reader {
 public:
  explicit Reader(const std::string& file) : file_(file) {}

  Manifest read(const wire::Manifest& message) {
    for (const wire::ShardFile& file : message.files()) manifest_.files.push_back(file_from(file));
    for (const wire::StoredTensor& tensor : message.tensors())
      manifest_.tensors.push_back(tensor_from(tensor));
    for (const wire::StoredObject& object : message.objects()) {
      expect_new(object.name());
      manifest_.objects.push_back({object.name(), range_from(object.range(), object.name())});
    }
    manifest_.planner_data = message.planner_data();
    return std::move(manifest_);
  }

  [[noreturn]] void malformed(const std::string& what) const {
    throw Error(ErrorKind::malformed, file_ + ": " + what);
  }

 private:
  StoredFile file_from(const wire::ShardFile& file) {
    const std::string& name = file.name();
    if (!is_file_name(name) || !files_.insert(name).second) {
      malformed("expected a name of its own for each file of the directory, found " + in_quotes(name));
    }
    if (file.header_bytes() > file.size())
      malformed("file " + in_quotes(name) + ": its header is longer than the file");
    return {name, file.size(), file.header_bytes(), file.header_checksum()};
  }

  void expect_new(const std::string& name) {
    if (!names_.insert(name).second) malformed(in_quotes(name) + " is there twice");
  }

  FileRange range_from(const wire::FileRange& range, const std::string& name) const {
    if (range.file() >= manifest_.files.size())
      malformed(in_quotes(name) + " lies in a file that is not listed");
    const StoredFile& file = manifest_.files[range.file()];
    if (range.begin() > range.end() || range.end() > file.size || range.begin() < file.header_bytes) {
      malformed(in_quotes(name) + ": bytes " + std::to_string(range.begin()) + " to " +
                std::to_string(range.end()) + " lie outside the data of " + in_quotes(file.name));
    }
    const std::uint64_t expected = checksum_blocks(range.end() - range.begin());
    if (static_cast<std::uint64_t>(range.checksums_size()) != expected) {
      malformed(in_quotes(name) + ": expected " + std::to_string(expected) + " checksums, found " +
                std::to_string(range.checksums_size()));
    }
    return {range.file(), {range.begin(), range.end(), {range.checksums().begin(), range.checksums().end()}}};
  }

  StoredTensor tensor_from(const wire::StoredTensor& from) {
    StoredTensor tensor;
    tensor.name = from.name();
    expect_new(tensor.name);
    tensor.dtype = from.dtype();
    tensor.safetensors_dtype = from.safetensors_dtype();
    tensor.element_bytes = from.element_bytes();
    tensor.requires_grad = from.requires_grad();
    tensor.pin_memory = from.pin_memory();
    tensor.shape.assign(from.shape().begin(), from.shape().end());
    const bool is_known =
        tensor.safetensors_dtype.empty() || dtype_named(tensor.safetensors_dtype).has_value();
    if (!is_known || tensor.element_bytes == 0 || tensor.element_bytes > 64 ||
        (!tensor.safetensors_dtype.empty() && static_cast<std::uint32_t>(bytes_of(*dtype_named(
                                                  tensor.safetensors_dtype))) != tensor.element_bytes)) {
      malformed(in_quotes(tensor.name) + ": no dtype " + in_quotes(tensor.safetensors_dtype) + " of " +
                std::to_string(tensor.element_bytes) + " bytes");
    }
    expect_shape(tensor.shape, tensor.name);
    std::vector<Box> boxes;
    for (const wire::StoredChunk& chunk : from.chunks()) {
      tensor.chunks.push_back(chunk_from(chunk, tensor));
      if (!is_empty(tensor.chunks.back().box)) boxes.push_back(tensor.chunks.back().box);
    }
    if (tensor.chunks.empty()) malformed(in_quotes(tensor.name) + " has no chunks");
    if (const std::string fault = tiling_fault(whole(tensor.shape), boxes); !fault.empty())
      malformed(in_quotes(tensor.name) + ": its chunks do not make up the whole: " + fault);
    return tensor;
  }

  /// Sizes that can be multiplied without going over.
  void expect_shape(const Shape& shape, const std::string& name) const {
    std::int64_t elements = 1;
    bool good = shape.size() <= max_rank;
    for (const std::int64_t size : shape) {
      good =
          good && size >= 0 && !__builtin_mul_overflow(elements, std::max<std::int64_t>(size, 1), &elements);
    }
    if (!good || elements > (std::int64_t{1} << 56))
      malformed(in_quotes(name) + ": expected a shape, found " + to_string(shape));
  }

  StoredChunk chunk_from(const wire::StoredChunk& from, const StoredTensor& tensor) const {
    StoredChunk chunk;
    chunk.box.offset.assign(from.offset().begin(), from.offset().end());
    chunk.box.size.assign(from.shape().begin(), from.shape().end());
    if (!lies_inside(chunk.box, tensor.shape)) {
      malformed(in_quotes(tensor.name) + ": chunk at " + to_string(chunk.box.offset) + " of " +
                to_string(chunk.box.size) + " leaves the tensor of " + to_string(tensor.shape));
    }
    chunk.range = range_from(from.range(), tensor.name);
    const std::uint64_t expected = static_cast<std::uint64_t>(volume(chunk.box.size)) * tensor.element_bytes;
    if (chunk.range.bytes.end - chunk.range.bytes.begin != expected) {
      malformed(in_quotes(tensor.name) + ": expected " + std::to_string(expected) +
                " bytes for a chunk, found " +
                std::to_string(chunk.range.bytes.end - chunk.range.bytes.begin));
    }
    return chunk;
  }

  const std::string& file_;
  Manifest manifest_;
  std::set<std::string> files_;
  std::unordered_set<std::string> names_;
};

}  // namespace

std::string encode_manifest(const Manifest& manifest) {
  wire::Manifest message;
  message.set_version(manifest.version);
  message.set_checksum_block_bytes(checksum_block_bytes);
  for (const StoredFile& file : manifest.files) {
    wire::ShardFile* to = message.add_files();
    to->set_name(file.name);
    to->set_size(file.size);
    to->set_header_bytes(file.header_bytes);
    to->set_header_checksum(file.header_checksum);
  }
  for (const StoredTensor& tensor : manifest.tensors) {
    wire::StoredTensor* to = message.add_tensors();
    to->set_name(tensor.name);
    to->set_dtype(tensor.dtype);
    to->set_safetensors_dtype(tensor.safetensors_dtype);
    to->set_element_bytes(tensor.element_bytes);
    to->set_requires_grad(tensor.requires_grad);
    to->set_pin_memory(tensor.pin_memory);
    to->mutable_shape()->Assign(tensor.shape.begin(), tensor.shape.end());
    for (const StoredChunk& chunk : tensor.chunks) {
      wire::StoredChunk* chunk_to = to->add_chunks();
      chunk_to->mutable_offset()->Assign(chunk.box.offset.begin(), chunk.box.offset.end());
      chunk_to->mutable_shape()->Assign(chunk.box.size.begin(), chunk.box.size.end());
      set(chunk_to->mutable_range(), chunk.range);
    }
  }
  for (const StoredObject& object : manifest.objects) {
    wire::StoredObject* to = message.add_objects();
    to->set_name(object.name);
    set(to->mutable_range(), object.range);
  }
  message.set_planner_data(manifest.planner_data);
  wire::ManifestFile file;
  file.set_manifest(message.SerializeAsString());
  file.set_checksum(checksum_of(file.manifest().data(), file.manifest().size(), manifest.order));
  file.set_order(manifest.order);
  return file.SerializeAsString();
}

Manifest decode_manifest(std::string_view bytes, const std::string& file) {
  const google::protobuf::LogSilencer silence;  // what is wrong goes into the error, not to stderr
  Reader reader(file);
  const auto most = static_cast<std::size_t>(std::numeric_limits<int>::max());
  wire::ManifestFile outer;
  if (bytes.size() > most || !outer.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    reader.malformed("this is not a manifest of a sharded checkpoint, or one that is damaged");
  if (checksum_of(outer.manifest().data(), outer.manifest().size(), outer.order()) != outer.checksum() ||
      outer.SerializeAsString() != bytes) {
    reader.malformed("the manifest is damaged: its checksum is not that of its bytes");
  }
  wire::Manifest message;
  if (!message.ParseFromString(outer.manifest())) reader.malformed("this is not a manifest");
  if (message.version() < 1 || message.version() > manifest_version ||
      message.checksum_block_bytes() != checksum_block_bytes) {
    reader.malformed("expected a manifest of version " + std::to_string(manifest_version) +
                     ", found version " + std::to_string(message.version()) +
                     "; read it with the release that wrote it");
  }
  Manifest manifest = reader.read(message);
  manifest.version = message.version();
  manifest.order = outer.order();
  return manifest;
}

}  // namespace shardwright
