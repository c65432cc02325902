#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace shardwright {

/// A file that is written to at any places by any number of threads at once. All functions throw Error(io)
/// with errno, naming the file, if the operating system refuses.
class OutputFile {
 public:
  /// Creates the file, or empties it, and sets disk space aside for `bytes`, so that a full disk is found
  /// before anything is written (where the file system can; elsewhere writing finds it).
  /// `flush`: what is written is to be on the device when finish() returns, and so begins its way there at
  /// once.
  OutputFile(const std::filesystem::path& path, std::uint64_t bytes, bool flush);

  /// Opens a file that other processes write to as well, whoever of them comes first creating it. Flushes.
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }

  /// Writes at byte `offset`; `what` says in messages what the bytes are. Returns how many requests to the
  /// operating system that took.
  std::uint64_t write(std::uint64_t offset, const std::byte* bytes, std::uint64_t count,
                      const std::string& what);

  /// Makes the file reach to a byte, which no other may lie behind; what nobody writes before it is zero.
  void reach(std::uint64_t size);

  /// Flushes the file to the device, unless that was not wanted, and closes it; does nothing the second time.
  void finish();

 private:
  void open(int flags);
  [[noreturn]] void fail(const std::string& what) const;

  std::filesystem::path path_;
  bool flush_ = true;
  int descriptor_ = -1;
};

/// Writes a file of this content, whose directory is there, and flushes it to the device unless that is not
/// wanted.
void write_whole_file(const std::filesystem::path& path, std::string_view content, bool flush = true);

}  // namespace shardwright
