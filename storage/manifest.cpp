#include "storage/manifest.h"

#include <algorithm>
#include <system_error>
#include <tuple>
#include <utility>

#include "planner/error.h"
#include "planner/problems.h"
#include "storage/input_file.h"
#include "storage/output_file.h"
#include "storage/printable.h"

namespace shardwright {

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t max_manifest_bytes = std::uint64_t{1} << 31;  // protobuf's own limit

}  // namespace

bool has_manifest(const fs::path& directory) {
  std::error_code code;
  return fs::exists(directory / manifest_name, code);
}

Manifest read_manifest(const fs::path& directory) {
  const fs::path path = directory / manifest_name;
  return decode_manifest(read_text(path, max_manifest_bytes), printable(path.native()));
}

void write_manifest(const fs::path& directory, const Manifest& manifest, bool sync) {
  const std::string bytes = encode_manifest(manifest);
  OutputFile file(directory / manifest_name, bytes.size(), sync);
  file.write(0, reinterpret_cast<const std::byte*>(bytes.data()), bytes.size(), "the manifest");
  file.finish();
}

Catalog catalog_of(const Manifest& manifest, const fs::path& directory) {
  Catalog catalog;
  catalog.directory = directory;
  Problems problems;
  for (const ManifestFile& file : manifest.files) {
    catalog.files.push_back({file.name, file.size});
    std::error_code code;
    const std::uint64_t size = fs::file_size(directory / file.name, code);
    const std::string path = printable((directory / file.name).native());
    if (code) {
      problems.add(path + ": " + code.message());
    } else if (size != file.size) {
      problems.add(path + ": expected " + std::to_string(file.size) + " bytes, found " +
                   std::to_string(size));
    }
  }
  problems.throw_if_any(ErrorKind::malformed, "the checkpoint is not whole");
  for (const StoredTensor& tensor : manifest.tensors) {
    const auto dtype = dtype_named(tensor.safetensors_dtype);
    for (const StoredChunk& chunk : tensor.chunks) {
      SourceTensor source{tensor.name,      dtype.value_or(DType::U8), chunk.box.size,       chunk.box.offset,
                          chunk.place.file, chunk.place.bytes.begin,   chunk.place.bytes.end};
      if (!dtype) {
        source.shape.push_back(tensor.element_bytes);
        source.offset.push_back(0);
      }
      catalog.tensors.push_back(std::move(source));
    }
  }
  std::sort(catalog.tensors.begin(), catalog.tensors.end(), [](const SourceTensor& a, const SourceTensor& b) {
    return std::tie(a.name, a.offset) < std::tie(b.name, b.offset);
  });
  return catalog;
}

}  // namespace shardwright
