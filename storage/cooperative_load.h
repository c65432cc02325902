#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "planner/catalog.h"
#include "planner/load_plan.h"
#include "planner/tensor_spec.h"
#include "storage/box_reading.h"
#include "storage/cooperation.h"
#include "storage/open_files.h"
#include "storage/staging.h"

namespace shardwright {

/// One rank's part of a load in which ranks read together. In each round it reads its pieces, places what it
/// needs of them itself, and lays out the rest for the others; the caller exchanges the bytes (all-to-all)
/// and gives those that came back. Plan, catalog and the specs' memory must outlive it. Not for
/// several threads at once, but for `read` of the next round while bytes of this one are under way.
class CooperativeLoad {
 public:
  /// `transfers_of_ranks` holds the transfers of every rank, this one's included.
  CooperativeLoad(const LoadPlan& plan, const Catalog& catalog, std::vector<TensorSpec> specs,
                  const std::vector<std::vector<Transfer>>& transfers_of_ranks, int rank, int threads,
                  std::uint64_t round_bytes);

  std::size_t rounds() const { return cooperation_.rounds(); }

  /// Bytes that go to, and come from, each rank in a round.
  std::vector<std::uint64_t> bytes_to(std::size_t round) const;
  std::vector<std::uint64_t> bytes_from(std::size_t round) const;

  /// Reads the round's pieces. `outgoing` has room for the sum of bytes_to(round): each rank's bytes after
  /// those of the rank before. Throws Error(io) naming file, offset and tensor.
  void read(std::size_t round, std::byte* outgoing);

  /// Places what came from the others: the sum of bytes_from(round), in the order of the ranks.
  void place(std::size_t round, const std::byte* incoming);

  /// The plan without what is read together: for load().
  LoadPlan rest() const;

  std::uint64_t bytes_read() const { return bytes_read_; }
  std::uint64_t requests() const { return requests_; }
  std::uint64_t bytes_received() const { return bytes_received_; }

 private:
  template <typename Visit>
  void for_each_share(std::size_t round, const Visit& visit) const;
  void read_piece(const SharedPiece& piece, const std::vector<std::byte*>& places);
  void read_box(const SourceTensor& tensor, const BoxReading& reading, std::byte* to);

  const LoadPlan& plan_;
  const Catalog& catalog_;
  const std::vector<TensorSpec> specs_;
  const int rank_;
  const int threads_;
  const std::size_t ranks_;
  Cooperation cooperation_;
  OpenFiles files_;
  std::uint64_t bytes_received_ = 0;

  std::mutex mutex_;  // guards what follows
  std::vector<std::unique_ptr<Staging>> unused_staging_;
  std::uint64_t bytes_read_ = 0;
  std::uint64_t requests_ = 0;
};

}  // namespace shardwright
