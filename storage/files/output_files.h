#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "storage/files/output_file.h"

namespace shardwright {

/// Files of one directory that several ranks fill at the same time, each its own byte ranges. A file is made
/// when somebody first writes to it. As a process may have only so many files open, those not written to for
/// the longest time are flushed and closed, and opened again when they are needed again. Thread-safe. All
/// functions throw Error(io), naming the file, if the operating system refuses.
class OutputFiles {
 public:
  OutputFiles(std::filesystem::path directory, std::vector<std::string> names);

  /// Writes to bytes `offset` and on of a file; `what` is what a message says that they are.
  void write(std::size_t file, std::uint64_t offset, const std::byte* bytes, std::uint64_t count,
             const std::string& what);

  /// Makes a file reach to a byte, which no other may lie behind; what nobody writes before it is zero.
  void reach(std::size_t file, std::uint64_t size);

  /// Flushes and closes all files that were written to. Nobody may write any more.
  void finish();

  std::int64_t count() const;
  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t requests() const { return requests_; }

 private:
  struct Slot {
    std::unique_ptr<OutputFile> file;  // null: closed
    int users = 0;                     // who write to it now
    std::uint64_t last_use = 0;        // 0: nobody has written to it
  };

  OutputFile& begin_use(std::size_t file);
  void end_use(std::size_t file);
  std::unique_ptr<OutputFile> taken_from_the_oldest();  // needs the mutex

  const std::filesystem::path directory_;
  const std::vector<std::string> names_;
  const std::size_t most_open_;
  std::mutex mutex_;  // guards the next three
  std::vector<Slot> files_;
  std::size_t open_ = 0;
  std::uint64_t last_use_ = 0;
  std::atomic<std::uint64_t> bytes_{0};
  std::atomic<std::uint64_t> requests_{0};
};

}  // namespace shardwright
