#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "storage/files/upload.h"
#include "storage/write/export.h"

namespace shardwright {

/// One rank's part of an export whose files are sent elsewhere (storage/files/upload.h), where ranks cannot
/// write into one file. Each file is sent by one rank, its owner: file f by rank f % ranks. Each rank encodes
/// its share, as for files of this machine, and gives the bytes to their owners, in rounds that all ranks
/// call alike:
///
///     for each round:  encode(round)             on every rank, which may throw on some
///                      all-to-all of messages()  by the caller
///                      receive(from, bytes)      for the bytes of each other rank
///     finish()
///
/// A round is a window of each of the next `ranks` files, so that each rank holds little more than what its
/// own file has in the window. Between two functions a rank may wait; none waits for another rank.
class SentExport {
 public:
  /// `told`: what Publication::plan() has said to this rank. Specs and state are those of describe_export();
  /// the memory must outlive this, and what `request` points to. Throws as run_export().
  SentExport(const std::string& told, const std::vector<TensorSpec>& specs, const RankState& state,
             const ExportRequest& request, const ExportWriting& options, std::size_t rank, std::size_t ranks,
             const SendPart& send);
  ~SentExport();

  std::size_t rounds() const;

  /// Encodes what this rank has of a round, and sends what is of its own files. Rounds are called in order.
  /// Throws as run_export(), and what sending throws.
  void encode(std::size_t round);

  /// What the rounds since the last call have for each rank; nothing for this one.
  std::vector<std::string> messages();

  /// Takes what another rank has had for this one. Throws Error(malformed), naming the file, for bytes that
  /// this rank does not own, or has already; what sending throws.
  void receive(std::size_t from, std::span<const std::byte> message);

  /// Returns once all files of this rank have been handed on. The report is of this rank's part, and of the
  /// files that it has sent. Throws Error(malformed) for a file that lacks bytes; what sending throws.
  ExportReport finish();

  /// The most memory that files to be sent and messages took.
  std::uint64_t peak_bytes_to_send() const;

 private:
  struct Work;
  std::unique_ptr<Work> work_;
};

}  // namespace shardwright
