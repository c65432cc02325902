#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "planner/save/write_results.h"
#include "storage/write/shard_file.h"

namespace shardwright {

/// What a rank of a sharded save writes: boxes of tensors, and objects as bytes.
struct RankItems {
  SavedValues values;  ///< without a mesh
  SavedItems items;
  std::vector<std::uint64_t> object_bytes;  ///< for each item: of an object its size, else of no meaning
};

struct RankFilesOptions {
  bool single_file = true;  ///< false: a file for each tensor
  bool flush = true;        ///< see OutputFile
  bool as_torch = false;    ///< in torch's format; else as safetensors

  /// The name of the safetensors file, of this rank the how many-eth from 0, that this tensor is the first
  /// of. Null: "rank-RRRRR-NNNNN-<tag>.safetensors", so that files keep clear of those of a checkpoint that
  /// is to be replaced. Files of torch's format end in .distcp.
  std::function<std::string(const std::string& fqn, std::size_t number)> name;

  std::string tag;  ///< of names; empty: a new one for each RankFiles

  /// Takes the bytes of all files, which are then not written to the directory. Null: they are.
  SendPart send;
};

/// The files of one rank of a sharded save. As safetensors: one file, more of them for further boxes of one
/// tensor, whose name a file can have only once; and one of bytes for what safetensors cannot hold, tensors
/// of other dtypes and objects. In torch's format: one file of torch streams, and objects behind them.
class RankFiles {
 public:
  /// Decides what goes where. Throws Error(argument) for a file name of options.name that is there twice.
  RankFiles(std::filesystem::path directory, std::int64_t rank, RankItems what,
            const RankFilesOptions& options);
  ~RankFiles();

  /// Writes items[i] from memory[i], an object's bytes like a tensor of bytes; on up to `threads` threads
  /// (0: all processors). May be called several times, with each item once; items in their order keep few
  /// files open. Errors and memory as ShardFile::write().
  GatherFigures write(std::span<const std::size_t> items, std::span<const TensorInMemory> memory, int threads,
                      const DeviceOptions& devices = {});

  /// Flushes all to the device, unless that was not wanted, and says where it lies. Throws Error(argument)
  /// for an item that has not been written.
  WriteResults finish();

  /// The most memory that what was to be sent took, of the file that took most.
  std::uint64_t peak_bytes_to_send() const { return peak_bytes_to_send_; }

 private:
  struct File;
  void deal_out(const RankFilesOptions& options);
  void open(std::size_t number);
  RowsInFile rows_in_file(std::size_t item) const;
  const SavedValue& value_of(std::size_t item) const;
  const std::string& name_of(std::size_t item) const;
  Box box_of(std::size_t item) const;
  std::uint64_t bytes_of(std::size_t item) const;

  std::filesystem::path directory_;
  RankItems what_;
  bool flush_;
  bool as_torch_;
  SendPart send_;
  WriteResults results_;
  std::vector<File> files_;
  std::vector<std::size_t> file_of_item_;
  std::vector<std::size_t> place_in_file_;
  std::vector<std::size_t> corners_of_item_;  // where its box begins in what_.items.corners
  std::vector<std::size_t> written_;          // files that are, and may still be open
  std::uint64_t peak_bytes_to_send_ = 0;
  std::size_t closed_ = 0;  // how many of them are not
};

}  // namespace shardwright
