#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/names/catalog.h"
#include "planner/save/write_results.h"

namespace shardwright {

inline constexpr char manifest_name[] = "shardwright.manifest";

/// Version of the manifest (storage/format/manifest.proto) that this build writes. It reads version 1, too.
inline constexpr unsigned manifest_version = 2;

struct StoredChunk {
  Box box;  ///< of the whole tensor
  FileRange range;
};

struct StoredTensor {
  std::string name;
  std::string dtype;              ///< torch's name, such as "bfloat16"
  std::string safetensors_dtype;  ///< empty where safetensors has no such dtype
  std::uint32_t element_bytes = 0;
  Shape shape;
  bool requires_grad = false;
  bool pin_memory = false;
  std::vector<StoredChunk> chunks;
};

struct StoredObject {
  std::string name;
  FileRange range;
};

/// What a sharded checkpoint holds.
struct Manifest {
  std::vector<StoredFile> files;
  std::vector<StoredTensor> tensors;
  std::vector<StoredObject> objects;
  std::string planner_data;
  unsigned version = manifest_version;
  std::uint64_t order = 0;  ///< the how many-eth save of its training; 0: not told
};

/// What all ranks have written between them. Throws Error: mismatch, naming tensor and ranks, if two ranks
/// have written one with another dtype or shape; argument for files of two ranks that have one name.
Manifest manifest_of(const std::vector<WriteResults>& ranks);

/// The same of what the ranks have told, as bytes, of a save of all these values. Throws one Error(mismatch)
/// that lists those that no rank has written, too.
Manifest manifest_of(const std::vector<std::string>& told, const std::vector<std::string>& names);

/// As bytes of the file.
std::string encode_manifest(const Manifest& manifest);

/// Reads and checks the bytes: `file` is what messages call them. Throws Error (malformed), naming the
/// tensor, for bytes that are damaged or of another version, for places outside their files, and for chunks
/// that do not tile their tensor exactly once.
Manifest decode_manifest(std::string_view bytes, const std::string& file);

/// True for a directory with anything of the manifest's name. Throws Error (io) where the system will not
/// tell.
bool has_manifest(const std::filesystem::path& directory);

/// Reads the manifest of a directory. Throws Error: not_found if it has none; as decode_manifest; io.
Manifest read_manifest(const std::filesystem::path& directory);

/// The order alone, from the end of the file, unchecked; 0 where the file does not tell. Throws Error: as
/// InputFile.
std::uint64_t read_order(const std::filesystem::path& directory);

/// Writes it, and flushes it to the device if `sync`.
void write_manifest(const std::filesystem::path& directory, const Manifest& manifest, bool sync = true);

/// The tensors for the engine. One of a dtype that safetensors lacks is there as bytes, U8 with a last
/// dimension of element_bytes. Looks at the files' sizes: throws Error (malformed) if a file is not as long
/// as it was. Torch's metadata may be absent.
Catalog catalog_of(const Manifest& manifest, const std::filesystem::path& directory);

}  // namespace shardwright
