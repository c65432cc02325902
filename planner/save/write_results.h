#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "planner/save/save_wire.h"

namespace shardwright {

/// A file of a checkpoint. What its checksums cover, storage/format/checksum.h says.
struct StoredFile {
  std::string name;  ///< in the directory of the checkpoint
  std::uint64_t size = 0;
  std::uint64_t header_bytes = 0;  ///< 0 for a file that is no safetensors file
  std::uint64_t header_checksum = 0;

  bool operator==(const StoredFile&) const = default;
};

/// Where something lies in a file: bytes [begin, end), and the checksum of each block of them.
struct StoredBytes {
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
  std::vector<std::uint64_t> checksums;

  bool operator==(const StoredBytes&) const = default;
};

/// In one of several files.
struct FileRange {
  std::uint32_t file = 0;  ///< index into the list of files
  StoredBytes bytes;

  bool operator==(const FileRange&) const = default;
};

/// What one rank of a save has written, as it tells the coordinator.
struct WriteResults {
  std::int64_t rank = 0;
  SavedValues values;  ///< without a mesh
  SavedItems items;
  std::vector<FileRange> ranges;  ///< one for each item
  std::vector<StoredFile> files;
  std::string failure;   ///< why it has written nothing; empty: it has
  int error_number = 0;  ///< errno of the failure, if the system gave one
  bool misfit = false;   ///< the failure is that of a plan, Error(mismatch)

  bool operator==(const WriteResults&) const = default;
};

/// The wire form (planner/wire/save_plan.proto, save_wire_version). Decoding throws Error(malformed) for
/// bytes that are cut short, damaged or of another version, for ranges outside their files, and for tensors
/// whose bytes are not as many as their boxes take.
std::string encode(const WriteResults& results);
WriteResults decode_results(std::string_view bytes);

/// Whether this is the name of a file of a directory, and nothing else.
bool is_file_name(std::string_view name);

}  // namespace shardwright
