#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace shardwright {

/// A file that is written to at any places by any number of threads at once. All functions throw Error(io)
/// with errno, naming the file, if the operating system refuses.
class OutputFile {
 public:
  /// Creates the file, or empties it, and sets disk space aside for `bytes`, so that a full disk is found
  /// before anything is written (where the file system can; elsewhere writing finds it).
  OutputFile(const std::filesystem::path& path, std::uint64_t bytes);

  /// Opens a file that other processes write to as well, whoever of them comes first creating it.
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }

  /// Writes at byte `offset`; `what` says in messages what the bytes are. Returns how many requests to the
  /// operating system that took.
  std::uint64_t write(std::uint64_t offset, const std::byte* bytes, std::uint64_t count,
                      const std::string& what);

  /// Flushes the file to the device if `sync`, and closes it.
  void finish(bool sync);

 private:
  void open(int flags);
  [[noreturn]] void fail(const std::string& what) const;

  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace shardwright
