#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace shardwright {

inline constexpr char hf_index_name[] = "model.safetensors.index.json";

/// The index of a Hugging Face checkpoint, {"metadata": {"total_size": n}, "weight_map": {"tensor": "file",
/// ...}}: which file holds which tensor.
struct HfIndex {
  struct Entry {
    std::string tensor;
    std::uint32_t file = 0;  ///< index into `files`
  };
  std::vector<std::string> files;  ///< sorted; relative to the directory, all of them inside it
  std::vector<Entry> entries;      ///< sorted by tensor; each tensor once
};

/// Reads and checks an index. `file` is what messages call it. Throws Error (malformed) for text that is no
/// index, for a tensor that is there twice, and for files outside the directory, all of which are named.
///
/// The paths are judged by their text. A file may still be a symbolic link to anywhere, as every file of
/// Hugging Face's own download cache is: a link was made by whoever owns the directory, not by whoever wrote
/// the index.
HfIndex parse_hf_index(std::string_view json, const std::string& file);

/// The text of an index, tensors in the order given.
std::string make_hf_index(const std::vector<std::string>& files, std::span<const HfIndex::Entry> entries,
                          std::uint64_t total_size);

}  // namespace shardwright
