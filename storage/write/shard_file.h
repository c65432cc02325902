#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/save/write_results.h"
#include "storage/boxes/gather.h"
#include "storage/device/device_gatherers.h"
#include "storage/files/output_file.h"
#include "storage/files/upload.h"
#include "storage/format/row_checksums.h"

namespace shardwright {

/// Bytes of a file that has no header of its own.
struct RowsInFile {
  std::string name;
  RowGeometry rows;         ///< for the checksums
  std::string header = {};  ///< another reader's, directly before the bytes; begins at a multiple of 64
};

/// One of the files that a rank of a sharded save writes: laid out and given its length before any data is
/// there.
class ShardFile {
 public:
  /// A safetensors file of chunks, each under the name of its whole tensor, with the DCP sharding metadata
  /// that torch's HuggingFaceStorageReader looks for. Of each chunk name, dtype, shape and offset count; a
  /// name may be there once. Throws Error: argument for what safetensors cannot hold; io.
  /// `flush`: see OutputFile. `send` takes the bytes in place of a file, under the last name of the path.
  ShardFile(const std::filesystem::path& path, std::vector<SourceTensor> chunks, bool flush,
            SendPart send = nullptr);

  /// A file of these, one after the other, each behind its own header.
  ShardFile(const std::filesystem::path& path, std::vector<RowsInFile> items, bool flush,
            SendPart send = nullptr);

  /// Writes items[i] of the file from tensors[i], on up to `threads` threads (0: all processors). Takes at
  /// most 4 MiB of memory for each, which only what is not contiguous needs, and twice that, pinned, for each
  /// CUDA device that a tensor is on. May be called several times. When it returns, all that it did on
  /// devices is done. Throws Error: argument for a tensor that is not as was planned; io; device, naming
  /// tensor and call.
  GatherFigures write(std::span<const std::size_t> items, std::span<const TensorInMemory> tensors,
                      int threads, const DeviceOptions& options = {});

  /// Flushes to the device, unless that was not wanted, and closes; does nothing the second time. What is
  /// sent has then been handed on.
  void finish();

  const std::vector<StoredBytes>& items() const { return items_; }
  std::uint64_t size() const { return size_; }
  std::uint64_t header_bytes() const { return header_.size(); }

  /// The checksum of the header, length field included; that of no bytes where there is no header.
  std::uint64_t header_checksum() const;

  /// The most memory that what was to be sent took.
  std::uint64_t peak_bytes_to_send() const { return upload_ ? upload_->peak_bytes() : 0; }

 private:
  struct Block;
  std::vector<Block> blocks_of(std::span<const std::size_t> items, std::span<const TensorInMemory> tensors);
  void open(const std::filesystem::path& path, bool flush, SendPart send);
  void write_block(const Block& block, const std::byte* bytes);
  void write_bytes(std::uint64_t offset, const std::byte* bytes, std::uint64_t count,
                   const std::string& what);

  std::string header_;
  std::vector<std::string> names_;
  std::vector<StoredBytes> items_;
  std::vector<RowGeometry> geometries_;    // of the items
  std::vector<std::string> item_headers_;  // empty, or of each of the items
  std::uint64_t size_;
  std::optional<OutputFile> file_;  // one of the two
  std::optional<Upload> upload_;
};

}  // namespace shardwright
