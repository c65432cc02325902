#pragma once

#include <cstdint>

namespace shardwright {

/// How files are read.
enum class Reads : std::uint8_t {
  automatic,  ///< io_uring for files that are not in the page cache, where the kernel allows it; else pread
  pread,      ///< each thread waits for its reads
  io_uring,   ///< reads ahead, several at a time for each thread
};

/// Which of the catalog's checksums are compared while blocks are read. Blocks that are read in part, tensors
/// that are read twice, and what goes straight into devices or is read together with other ranks are not.
enum class Checks : std::uint8_t {
  automatic,  ///< where it costs next to nothing: of files that are not in the page cache, and small loads
  none,
  all,
};

/// Which files are read past the page cache.
enum class DirectIo : std::uint8_t {
  automatic,  ///< for files that are not in the page cache
  always,     ///< for all files whose file system allows it
  never,
};

}  // namespace shardwright
