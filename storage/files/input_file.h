#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include "storage/files/remote_objects.h"

namespace shardwright {

/// A regular file, or one that a link leads to, open for reading; closes itself. Anything else is refused
/// before it is opened, as opening a pipe or a device can wait, or do something. A path that is an address
/// stands for a remote object, which is looked at and not opened. Any number of threads may call `read` at
/// once.
class InputFile {
 public:
  /// Throws Error: not_found if there is no such file; io, with errno, if it cannot be opened or is no
  /// regular file, saying what it is.
  explicit InputFile(const std::filesystem::path& path);

  /// The same of a remote object whose size and version are known; asks for nothing. What is read is of that
  /// version. Of a local file these are not looked at.
  InputFile(const std::filesystem::path& path, std::uint64_t size, const std::string& version);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }

  /// Bytes in the file when it was opened.
  std::uint64_t size() const { return size_; }

  /// Of a remote object, as its store tells; empty for a file.
  const std::string& version() const { return version_; }

  bool is_object() const { return is_object_; }

  /// The descriptor, for system calls that read; stays this object's. -1: it is a remote object.
  int descriptor() const { return descriptor_; }

  /// Fills `into` with the `count` bytes from `offset` on. Throws Error (io) if the file ends before.
  void read(std::uint64_t offset, char* into, std::size_t count) const;

  /// The same of a remote object, in memory of its store. Returns early once `stopped` is true, and what it
  /// then gives is undefined, and may be null.
  ArrivedBytes read_object(std::uint64_t offset, std::size_t count, const std::atomic<bool>& stopped) const;

 private:
  void open();

  std::filesystem::path path_;
  std::string version_;
  bool is_object_ = false;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

/// Bytes of a regular file or of a remote object. Throws Error as InputFile.
std::uint64_t size_of_file(const std::filesystem::path& path);

}  // namespace shardwright
