#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "planner/catalog.h"
#include "storage/input_file.h"

namespace shardwright {

enum class DirectIo : std::uint8_t {
  automatic,  ///< for files that are not in the page cache
  always,     ///< for all files whose file system allows it
  never,
};

/// A file that a load reads from.
struct OpenFile {
  std::unique_ptr<const InputFile> file;
  bool is_cached = true;       ///< at least half of it was in the page cache when it was opened
  int direct_descriptor = -1;  ///< for reading past the page cache; -1: read through it

  OpenFile() = default;
  ~OpenFile();
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
};

/// Files of a checkpoint, opened when first needed and closed at the end. Any thread may call it.
class OpenFiles {
 public:
  OpenFiles(const Catalog& catalog, DirectIo direct_io)
      : catalog_(catalog), direct_io_(direct_io), files_(catalog.files.size()) {}

  /// The file that holds `tensor`. Throws Error(io) naming file and tensor if it cannot be opened, or if its
  /// size is not what it was when the catalog was read.
  const OpenFile& of(const SourceTensor& tensor);

  /// Fills `to` with `length` bytes from `offset` on of the file that holds `tensor`, through the page cache.
  /// Throws Error(io) naming file, offset and tensor.
  void read(const SourceTensor& tensor, std::uint64_t offset, std::byte* to, std::uint64_t length);

  std::int64_t count() const;         ///< files opened
  std::int64_t count_direct() const;  ///< of them, those that are read past the page cache

 private:
  std::unique_ptr<OpenFile> open(const SourceTensor& tensor) const;

  const Catalog& catalog_;
  const DirectIo direct_io_;
  mutable std::mutex mutex_;
  std::vector<std::unique_ptr<OpenFile>> files_;  // by index into Catalog::files
};

}  // namespace shardwright
