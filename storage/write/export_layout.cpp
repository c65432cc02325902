#include "storage/write/export_layout.h"

#include <algorithm>
#include <cstdio>
#include <string_view>
#include <tuple>
#include <unordered_set>
#include <utility>

#include "planner/error.h"
#include "planner/names/companions.h"
#include "planner/names/packed_weights.h"
#include "storage/files/printable.h"
#include "storage/format/hf_index.h"
#include "storage/format/safetensors.h"

namespace shardwright {
namespace {

std::vector<std::vector<SourceTensor>> split_by_size(std::vector<SourceTensor>& tensors,
                                                     std::uint64_t max_file_bytes) {
  std::vector<std::vector<SourceTensor>> files(1);
  std::uint64_t filled = 0;
  for (SourceTensor& tensor : tensors) {
    const std::uint64_t bytes = stored_bytes(tensor.dtype, tensor.shape);
    if (!files.back().empty() && filled + bytes > max_file_bytes) {
      files.emplace_back();
      filled = 0;
    }
    filled += bytes;
    files.back().push_back(std::move(tensor));
  }
  return files;
}

std::vector<std::vector<SourceTensor>> split_by_number(std::vector<SourceTensor>& tensors,
                                                       const std::map<std::string, int>& file_numbers) {
  std::vector<std::vector<SourceTensor>> files;
  for (SourceTensor& tensor : tensors) {
    auto found = file_numbers.find(stored_name(tensor));
    if (found == file_numbers.end()) found = file_numbers.find(tensor.name);
    if (found == file_numbers.end())
      found = file_numbers.find(std::string(weight_name_of(weight_name_of_companion(tensor.name))));
    if (found == file_numbers.end() || found->second < 1) {
      throw Error(ErrorKind::argument,
                  "fqn_to_index_mapping: expected a file number of 1 or more for " + in_quotes(tensor.name) +
                      ", found " + (found == file_numbers.end() ? "none" : std::to_string(found->second)));
    }
    const auto number = static_cast<std::size_t>(found->second);
    if (files.size() < number) files.resize(number);
    files[number - 1].push_back(std::move(tensor));
  }
  return files;
}

void add_file(ExportLayout& layout, const std::string& name, std::vector<SourceTensor> tensors,
              const std::map<std::string, std::string>& metadata) {
  const auto file = static_cast<std::uint32_t>(layout.catalog.files.size());
  layout.headers.push_back(make_safetensors_header(tensors, metadata));
  layout.catalog.files.push_back({name, tensors.back().end});
  for (SourceTensor& tensor : tensors) {
    tensor.file = file;
    layout.total_size += tensor.end - tensor.begin;
    layout.catalog.tensors.push_back(std::move(tensor));
  }
}

/// By name, each of which is there once.
void sort_tensors(Catalog& catalog) {
  std::sort(catalog.tensors.begin(), catalog.tensors.end(),
            [](const SourceTensor& a, const SourceTensor& b) { return a.name < b.name; });
  for (std::size_t t = 1; t < catalog.tensors.size(); ++t) {
    if (catalog.tensors[t].name == catalog.tensors[t - 1].name) {
      throw Error(ErrorKind::mismatch,
                  "two tensors of the state dict would be stored as " + in_quotes(catalog.tensors[t].name));
    }
  }
  std::unordered_set<std::string_view> stored;  // under which a tensor may be that is packed
  stored.reserve(catalog.tensors.size());
  for (const SourceTensor& tensor : catalog.tensors) {
    if (!stored.insert(stored_name(tensor)).second)
      throw Error(ErrorKind::mismatch,
                  "two tensors of the state dict would be stored as " + in_quotes(stored_name(tensor)));
  }
}

}  // namespace

ExportLayout lay_out(const std::filesystem::path& directory, std::vector<SourceTensor> tensors,
                     std::uint64_t max_file_bytes, const std::map<std::string, int>& file_numbers,
                     const std::string& start_of_names) {
  std::vector<std::vector<SourceTensor>> files =
      file_numbers.empty() ? split_by_size(tensors, max_file_bytes) : split_by_number(tensors, file_numbers);
  ExportLayout layout;
  layout.catalog.directory = directory;
  for (std::size_t f = 0; f < files.size(); ++f) {
    if (files[f].empty()) continue;
    char name[64];
    std::snprintf(name, sizeof name, "-%05zu-of-%05zu.safetensors", f + 1, files.size());
    add_file(layout, start_of_names + name, std::move(files[f]), {{"format", "pt"}});
  }
  sort_tensors(layout.catalog);
  return layout;
}

ExportLayout lay_out_one_file(const std::filesystem::path& directory, std::vector<SourceTensor> tensors,
                              const std::string& name, std::map<std::string, std::string> metadata) {
  ExportLayout layout;
  layout.catalog.directory = directory;
  layout.has_checksums = false;
  metadata.emplace("format", "pt");
  add_file(layout, name, std::move(tensors), metadata);
  sort_tensors(layout.catalog);
  return layout;
}

std::string hf_index_of(const ExportLayout& layout) {
  std::vector<const SourceTensor*> in_files;
  for (const SourceTensor& tensor : layout.catalog.tensors) in_files.push_back(&tensor);
  std::sort(in_files.begin(), in_files.end(), [](const SourceTensor* a, const SourceTensor* b) {
    return std::tie(a->file, a->begin, a->end, a->name) < std::tie(b->file, b->begin, b->end, b->name);
  });
  std::vector<HfIndex::Entry> entries;
  for (const SourceTensor* tensor : in_files) entries.push_back({stored_name(*tensor), tensor->file});
  std::vector<std::string> names;
  for (const SourceFile& file : layout.catalog.files) names.push_back(file.name);
  return make_hf_index(names, entries, layout.total_size);
}

}  // namespace shardwright
