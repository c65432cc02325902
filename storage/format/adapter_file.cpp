#include "storage/format/adapter_file.h"

#include <algorithm>
#include <tuple>

#include "storage/format/safetensors.h"

namespace shardwright {

Catalog read_adapter_catalog(const std::filesystem::path& file) {
  Catalog catalog;
  catalog.directory = file.parent_path();
  catalog.files = {{file.filename().string(), 0}};
  catalog.tensors = read_safetensors_header(file, catalog.files.front().size).tensors;
  std::sort(catalog.tensors.begin(), catalog.tensors.end(), [](const SourceTensor& a, const SourceTensor& b) {
    return std::tie(a.name, a.offset) < std::tie(b.name, b.offset);
  });
  return catalog;
}

}  // namespace shardwright
