#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "planner/names/catalog.h"
#include "storage/files/input_file.h"

namespace shardwright {

/// The safetensors format in short: 8 bytes, the length n of the header (little endian); n bytes of JSON, an
/// object {"name": {"dtype": "BF16", "shape": [3, 5], "data_offsets": [begin, end]}, ..., "__metadata__":
/// {"key": "text"}}, possibly padded with spaces; then the tensors, row-major and little endian. Offsets
/// count from the end of the header. The tensors fill the rest of the file: no gaps, no overlaps, nothing
/// after the last.
struct SafetensorsHeader {
  std::vector<SourceTensor>
      tensors;  ///< in the order of the header; begin and end count from the start of the file
  std::map<std::string, std::string> metadata;
};

/// Longest header that is accepted, the same bound as the safetensors library has.
inline constexpr std::uint64_t max_safetensors_header_bytes = 100'000'000;

/// Most dimensions a tensor may have here.
inline constexpr std::size_t max_rank = 8;

/// Reads and checks a header from `json`, the bytes after the length field of a file of `file_size` bytes.
/// `file` is what messages call it. Throws Error (malformed), naming file and tensor, for anything that
/// breaks the format.
///
/// Where torch's HuggingFaceStorageWriter has left its DCP_SHARDING_INFO, the offsets of the chunks are taken
/// from it.
SafetensorsHeader parse_safetensors_header(std::string_view json, std::uint64_t file_size,
                                           const std::string& file);

/// Reads the header of a file, and no further; `size` receives the file's size. Checks and throws as
/// parse_safetensors_header().
SafetensorsHeader read_safetensors_header(const std::filesystem::path& path, std::uint64_t& size);

/// The same of a file that is open.
SafetensorsHeader read_safetensors_header(const InputFile& input);

/// The first bytes of a file that holds these tensors one after the other in the order given: length field,
/// JSON, and spaces up to a multiple of 8 bytes. Sets begin and end of each. Throws Error (argument) for a
/// tensor that the format cannot hold.
std::string make_safetensors_header(std::span<SourceTensor> tensors,
                                    const std::map<std::string, std::string>& metadata);

/// Bytes of a tensor's data; throws Error (argument) if they are too many, or no whole number.
std::uint64_t stored_bytes(DType dtype, const Shape& shape);

}  // namespace shardwright
