#include "storage/format/checksums_file.h"

#include <google/protobuf/stubs/logging.h>

#include <limits>
#include <set>
#include <utility>

#include "planner/error.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"
#include "storage/format/checksum.h"
#include "storage/format/checksums.pb.h"
#include "storage/format/row_checksums.h"
#include "storage/format/stored_file.h"
#include "storage/format/text_file.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t version = 1;
constexpr std::uint64_t max_bytes = std::uint64_t{1} << 31;  // protobuf's own limit

void set(wire::ExportedFile* to, const StoredFile& file) {
  to->set_name(file.name);
  to->set_size(file.size);
  to->set_header_bytes(file.header_bytes);
  to->set_checksum(file.header_checksum);
}

/// A relative path inside a directory.
bool is_inside(const std::string& name) {
  const fs::path path(name);
  if (name.empty() || name.find('\0') != std::string::npos || path.is_absolute()) return false;
  for (const fs::path& part : path) {
    if (part == ".." || part == ".") return false;
  }
  return path.has_filename();
}

}  // namespace

std::string encode_checksums(const Checksums& checksums) {
  wire::Checksums message;
  message.set_version(version);
  for (const StoredFile& file : checksums.files) set(message.add_files(), file);
  for (const StoredFile& file : checksums.beside) set(message.add_beside(), file);
  for (const auto& [name, rows] : checksums.tensors) {
    wire::ExportedTensor* tensor = message.add_tensors();
    tensor->set_name(name);
    tensor->mutable_cuts()->Assign(rows.cuts.begin(), rows.cuts.end());
    tensor->mutable_sums()->Assign(rows.sums.begin(), rows.sums.end());
  }
  wire::ChecksumsFile file;
  file.set_checksums(message.SerializeAsString());
  file.set_checksum(checksum_of(file.checksums().data(), file.checksums().size()));
  return file.SerializeAsString();
}

Checksums decode_checksums(std::string_view bytes, const std::string& file) {
  const google::protobuf::LogSilencer silence;  // what is wrong goes into the error, not to stderr
  const auto malformed = [&](const std::string& what) {
    return Error(ErrorKind::malformed,
                 file + ": " + what +
                     "; export or download the checkpoint again, or delete this file to load " +
                     "without checksums");
  };
  wire::ChecksumsFile outer;
  wire::Checksums message;
  if (bytes.size() > static_cast<std::size_t>(std::numeric_limits<int>::max()) ||
      !outer.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())) ||
      outer.SerializeAsString() != bytes ||
      checksum_of(outer.checksums().data(), outer.checksums().size()) != outer.checksum() ||
      !message.ParseFromString(outer.checksums())) {
    throw malformed("the list of checksums is damaged");
  }
  if (message.version() != version) {
    throw malformed("expected checksums of version " + std::to_string(version) + ", found version " +
                    std::to_string(message.version()));
  }
  Checksums checksums;
  std::set<std::string> names;
  const auto file_from = [&](const wire::ExportedFile& from) {
    if (!is_inside(from.name()) || !names.insert(from.name()).second)
      throw malformed("expected names of files inside the directory, once each, found " +
                      in_quotes(from.name()));
    return StoredFile{from.name(), from.size(), from.header_bytes(), from.checksum()};
  };
  for (const wire::ExportedFile& from : message.files()) checksums.files.push_back(file_from(from));
  for (const wire::ExportedFile& from : message.beside()) checksums.beside.push_back(file_from(from));
  for (const wire::ExportedTensor& from : message.tensors()) {
    RowChecksums rows{{from.cuts().begin(), from.cuts().end()}, {from.sums().begin(), from.sums().end()}};
    std::uint64_t end = 0;
    for (const std::uint64_t cut : rows.cuts) {
      if (cut <= end) throw malformed(in_quotes(from.name()) + ": its cuts do not rise");
      end = cut;
    }
    if (!checksums.tensors.emplace(from.name(), std::move(rows)).second)
      throw malformed(in_quotes(from.name()) + " is there twice");
  }
  return checksums;
}

std::optional<Checksums> read_checksums(const fs::path& directory) {
  const fs::path path = directory / checksums_name;
  std::string text;
  try {
    text = read_text(path, max_bytes);
  } catch (const Error& error) {
    if (error.kind == ErrorKind::not_found) return std::nullopt;
    throw;
  }
  return decode_checksums(text, printable(path.native()));
}

StoredFile whole_file(const fs::path& directory, const std::string& name) {
  const std::string text = read_text(directory / name, max_bytes);
  return {name, text.size(), 0, checksum_of(text.data(), text.size())};
}

void add_checksums(Catalog& catalog, int threads) {
  std::optional<Checksums> listed = read_checksums(catalog.directory);
  if (!listed) return;
  std::map<std::string, const StoredFile*> by_name;
  for (const StoredFile& file : listed->files) by_name.emplace(file.name, &file);
  for_each_index(catalog.files.size(), threads_for(catalog.directory, threads), [&](std::size_t f) {
    const SourceFile& file = catalog.files[f];
    const auto found = by_name.find(file.name);
    if (found == by_name.end()) return;
    const std::string change = change_of(catalog.directory, *found->second);
    if (change.empty()) return;
    throw Error(ErrorKind::malformed,
                printable((catalog.directory / file.name).native()) +
                    ": expected the file that was exported, " + change +
                    "; export or download the checkpoint again. If the file was changed on purpose, delete " +
                    checksums_name + " beside it");
  });
  auto checksums = std::make_shared<std::vector<RowChecksums>>(catalog.tensors.size());
  for (std::size_t t = 0; t < catalog.tensors.size(); ++t) {
    const SourceTensor& tensor = catalog.tensors[t];
    const auto found = listed->tensors.find(tensor.name);
    if (found == listed->tensors.end() || !by_name.contains(catalog.files[tensor.file].name)) continue;
    const RowGeometry geometry = rows_of(tensor);
    RowChecksums& rows = found->second;
    if (rows.sums.empty()) continue;
    if (rows.sums.size() != checksum_blocks(geometry.bytes) || rows.cuts.empty() ||
        rows.cuts.back() != geometry.row_bytes) {
      throw Error(ErrorKind::malformed, printable((catalog.directory / checksums_name).native()) + ": " +
                                            in_quotes(tensor.name) +
                                            ": its checksums are not of a tensor of " +
                                            to_string(tensor.shape) + "; delete this file to load without");
    }
    (*checksums)[t] = std::move(rows);
  }
  catalog.checksums = std::move(checksums);
}

}  // namespace shardwright
