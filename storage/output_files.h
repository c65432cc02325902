#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "storage/output_file.h"

namespace shardwright {

/// Files of one directory that several ranks fill at the same time, each its own byte ranges. A file is made
/// when somebody first writes to it. Safe to share between threads. All functions throw Error(io), naming the
/// file, if the operating system refuses.
class OutputFiles {
 public:
  OutputFiles(std::filesystem::path directory, std::vector<std::string> names);

  /// Writes to bytes `offset` and on of a file; `what` is what a message says that they are.
  void write(std::size_t file, std::uint64_t offset, const std::byte* bytes, std::uint64_t count,
             const std::string& what);

  /// Flushes and closes all files that were written to.
  void finish();

  std::int64_t count() const;
  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t requests() const { return requests_; }

 private:
  OutputFile& opened(std::size_t file);

  std::filesystem::path directory_;
  std::vector<std::string> names_;
  std::mutex mutex_;                                // of opening
  std::vector<std::unique_ptr<OutputFile>> files_;  // null: nobody has written to it
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<std::uint64_t> requests_{0};
};

}  // namespace shardwright
