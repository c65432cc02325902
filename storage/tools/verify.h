#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "storage/progress.h"

namespace shardwright {

/// What a checkpoint was found to be.
struct VerifyReport {
  std::string kind;  ///< "sharded" or "Hugging Face"; of Python's verify() also "torch"
  std::int64_t files = 0;
  std::int64_t tensors = 0;
  std::int64_t objects = 0;
  std::uint64_t bytes_hashed = 0;     ///< 0 where the format has no checksums
  std::vector<std::string> problems;  ///< a line each, naming file and tensor; empty: nothing was found
  std::vector<std::string> damaged;   ///< names of tensors and objects that a problem concerns; sorted
};

/// Checks headers, index, coverage and checksums of a checkpoint, and of encoded weights in Hugging Face's
/// format the scales, which loads refuse where no encoder writes them, on up to `threads` threads (0: all
/// processors). What is wrong with the checkpoint is in the report; throws Error (not_found, io) only if
/// there is nothing to look at. `progress` counts bytes that are read for it.
VerifyReport verify_checkpoint(const std::filesystem::path& directory, int threads = 0,
                               Progress* progress = nullptr);

}  // namespace shardwright
