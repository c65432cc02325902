#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace shardwright {

/// A regular file, or one that a link leads to, open for reading; closes itself. Anything else is refused
/// before it is opened, as opening a pipe or a device can wait, or do something. Any number of threads may
/// call `read` at once.
class InputFile {
 public:
  /// Throws Error: not_found if there is no such file; io, with errno, if it cannot be opened or is no
  /// regular file, saying what it is.
  explicit InputFile(const std::filesystem::path& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }

  /// Bytes in the file when it was opened.
  std::uint64_t size() const { return size_; }

  /// The descriptor, for system calls that read; stays this object's.
  int descriptor() const { return descriptor_; }

  /// Fills `into` with the `count` bytes from `offset` on. Throws Error (io) if the file ends before.
  void read(std::uint64_t offset, char* into, std::size_t count) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

/// Bytes of a regular file. Throws Error as InputFile.
std::uint64_t size_of_file(const std::filesystem::path& path);

}  // namespace shardwright
