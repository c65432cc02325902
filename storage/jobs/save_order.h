#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace shardwright {

/// A place in the order of the saves of one training, which is told by manifests.
struct SaveOrder {
  std::uint64_t order = 0;
  std::vector<std::string> unread;  ///< a line for each step whose place is not known, and why
};

/// The place of a save to `directory`: one more than that of any other step beside it; 0 for a directory that
/// is not called as those of steps are. A step that cannot be read counts as saved now, in seconds since
/// 1970, which is more than any that counting came to.
SaveOrder next_order(const std::filesystem::path& directory);

}  // namespace shardwright
