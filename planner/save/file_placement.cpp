#include "planner/save/file_placement.h"

namespace shardwright {

std::vector<std::uint32_t> place_in_files(const std::vector<std::uint64_t>& bytes_of_tensor,
                                          std::uint64_t most_bytes) {
  std::vector<std::uint32_t> files;
  files.reserve(bytes_of_tensor.size());
  std::uint32_t file = 0;
  std::uint64_t filled = 0;
  for (const std::uint64_t bytes : bytes_of_tensor) {
    const bool has_room = filled <= most_bytes && bytes <= most_bytes - filled;
    if (!files.empty() && !has_room) {
      ++file;
      filled = 0;
    }
    filled += bytes;
    files.push_back(file);
  }
  return files;
}

}  // namespace shardwright
