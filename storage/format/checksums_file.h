#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/save/write_results.h"

namespace shardwright {

/// The checksums of a Hugging Face checkpoint, which an export writes beside its index
/// (storage/format/checksums.proto). That the file is there says that this library wrote the checkpoint.
inline constexpr char checksums_name[] = "shardwright.checksums";

struct Checksums {
  std::vector<StoredFile> files;                ///< of weights
  std::vector<StoredFile> beside;               ///< config.json and the like; header_checksum is of all of it
  std::map<std::string, RowChecksums> tensors;  ///< by name
};

std::string encode_checksums(const Checksums& checksums);

/// Throws Error(malformed) for bytes that are damaged, of another version, or name files outside the
/// directory. `file` is what messages call them.
Checksums decode_checksums(std::string_view bytes, const std::string& file);

/// Reads the checksums of a directory; nothing where there is no such file. Throws Error as decode_checksums,
/// io.
std::optional<Checksums> read_checksums(const std::filesystem::path& directory);

/// The checksum of a whole file. Throws Error as InputFile.
StoredFile whole_file(const std::filesystem::path& directory, const std::string& name);

/// Puts the checksums of the directory into its catalog, if it has some. Throws Error(malformed), naming the
/// file, if a file of weights is not the one that was exported: of another size, or with another header.
void add_checksums(Catalog& catalog, int threads);

}  // namespace shardwright
