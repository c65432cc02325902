#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"
#include "storage/files/open_files.h"
#include "storage/load/companions.h"
#include "storage/load/cooperation.h"
#include "storage/load/load.h"
#include "storage/load/load_devices.h"
#include "storage/load/piece_ring.h"
#include "storage/load/reading_resources.h"
#include "storage/load/task_loop.h"
#include "storage/load/task_reader.h"
#include "storage/load/trace.h"
#include "storage/load/written_parts.h"
#include "storage/seconds.h"

namespace shardwright {

/// How ranks read together, the same on all of them.
struct ReadingTogether {
  HandingOver way = HandingOver::in_rounds;
  bool cached_files_apart = false;  ///< see CooperationLimits
};

/// One rank's part of a load in which ranks read together: files are read as by load(). In each round it
/// reads its pieces, places what it needs of them itself, and lays out the rest for the others; the caller
/// exchanges the bytes (all-to-all) and gives those that came back. Or, on one node, pieces pass through
/// shared memory. Plan, catalog and the specs' memory must outlive it. REQUIRES: one thread at a time. Errors
/// name what they leave partly written.
class CooperativeLoad {
 public:
  /// Opens the files that the plan needs. Of options.staging_bytes half is for reading, half for four buffers
  /// of a round, two outgoing and two incoming, of 16 MiB each if it is 0. Throws as load() does.
  CooperativeLoad(const LoadPlan& plan, const Catalog& catalog, std::vector<TensorSpec> specs,
                  const LoadOptions& options);

  ~CooperativeLoad() { abandon(); }
  CooperativeLoad(const CooperativeLoad&) = delete;
  CooperativeLoad& operator=(const CooperativeLoad&) = delete;

  const CooperationTerms& terms() const { return terms_; }

  /// True if some of the specs are on CUDA devices: what place() is given must be in pinned memory then.
  bool to_devices() const { return devices_.any(); }

  /// Settles who reads what, before all else. The vectors hold an entry for every rank, this one included.
  /// May be called again, for another way, before anything is read. Throws Error(device).
  void begin(const std::vector<std::vector<Transfer>>& transfers_of_ranks,
             const std::vector<CooperationTerms>& terms_of_ranks, int rank, ReadingTogether how = {});

  /// Bytes of the memory that the ranks of a node share for this load: one of them makes it. The same on all
  /// of them. REQUIRES: HandingOver::by_shared_memory, for this and the next two.
  std::size_t node_bytes() const { return PieceRing::bytes_of(ring_sizes()); }

  /// Takes part in what passes through that memory, which is given back with the last piece.
  void join_node(SharedMemory memory);

  /// Reads pieces, whichever nobody reads yet, and takes this rank's shares of all. REQUIRES: all ranks have
  /// joined. `options` adds its progress and check_for_interrupt. False if another rank has failed: the load
  /// is at its end. Throws as load() does, and Error(io) where a rank has ended, or where nothing happens for
  /// as long as `timeout`.
  bool read_on_node(std::chrono::milliseconds timeout, const LoadOptions& options);

  /// Tells the others on the node that this rank has failed, where read_on_node() has not been called.
  void fail_on_node() noexcept {
    if (ring_) ring_->fail();
  }

  std::size_t rounds() const { return cooperation_.rounds(); }
  std::size_t pieces() const { return cooperation_.pieces.size(); }

  /// Bytes that go to, and come from, each rank in a round.
  std::vector<std::uint64_t> bytes_to(std::size_t round) const;
  std::vector<std::uint64_t> bytes_from(std::size_t round) const;

  /// Reads the round's pieces. `outgoing` has room for the sum of bytes_to(round): each rank's bytes after
  /// those of the rank before. Throws Error(io) naming file, offset and tensor; nothing more may be read
  /// then.
  void read(std::size_t round, std::byte* outgoing);

  /// Places what came from the others: the sum of bytes_from(round), in the order of the ranks.
  void place(std::size_t round, const std::byte* incoming);

  /// Ends what is under way on devices and gives back what was taken of them, for a load that has failed,
  /// here or elsewhere. Nothing else may be called then but partly_written().
  void abandon() noexcept;

  /// Names of the tensors that have been written to, and are not known to be whole.
  std::vector<std::string> partly_written() const { return written_.partly_written(specs_); }

  /// Bytes of the pieces that this rank reads: so far, and in all.
  std::uint64_t bytes_done() const { return bytes_done_; }
  std::uint64_t bytes_in_all() const { return bytes_in_all_; }

  /// Loads what this rank alone needs, which is all if nothing was begun, and writes the trace of all. After
  /// the last round or piece, once. `options` adds its progress and check_for_interrupt to those of the
  /// constructor. Throws as load() does.
  LoadReport finish(const LoadOptions& options);

 private:
  template <typename Visit>
  void for_each_share(std::size_t round, const Visit& visit) const;
  void run(const std::function<void()>& work);
  void naming_what_is_written(const std::function<void()>& work);
  void read_pieces(std::size_t round, std::byte* outgoing);
  void place_shares(std::size_t round, const std::byte* incoming);
  void place_piece(const SharedPiece& piece, const StagedTask& staged, const std::vector<std::byte*>& places);
  void place_part(std::uint32_t transfer, BoxInMemory part, std::size_t bytes);
  LoadPlan rest() const;
  LoadReport figures_of_rounds(const LoadPlan& rest);
  void note_exchange(std::uint64_t bytes);

  // Of ranks on a node: see node_load.cpp.
  struct Reader;
  class SharesToTake;
  struct NodeRun;
  PieceRing::Sizes ring_sizes() const;
  void leave_node() noexcept;
  bool run_on_node(std::chrono::milliseconds timeout, const LoadOptions& options);
  void work_on_node(Reader& reader, NodeRun& run);
  void publish(Reader& reader, const StagedTask& staged, NodeRun& run) const;
  void take(Reader& reader, std::size_t piece, const SharedPiece::Share& share, NodeRun& run);

  /// What a thread keeps from one round to the next.
  struct Reader {
    std::unique_ptr<TaskReader> tasks;
    std::unique_ptr<Staging> pinned;  // what devices copy from, of shared memory
    TaskFigures figures;
    std::vector<Trace::Event> events;
    std::set<std::uint32_t> files;  // that it has read from, where pieces pass through shared memory
  };

  const LoadPlan& plan_;
  const Catalog& catalog_;
  const std::vector<TensorSpec> specs_;
  const LoadOptions options_;
  const Clock::time_point begin_ = Clock::now();
  Trace trace_;
  WrittenParts written_;
  LoadDevices devices_;
  bool devices_are_open_ = false;
  OpenFiles files_;
  const FileReading reading_;
  const Companions companions_;
  const Resources resources_;
  CooperationTerms terms_;

  int rank_ = 0;
  std::size_t ranks_ = 0;
  CooperationLimits limits_;
  Cooperation cooperation_;
  HandingOver way_ = HandingOver::in_rounds;
  std::optional<SharedMemory> memory_;
  std::optional<PieceRing> ring_;  // in it
  std::vector<Reader> readers_;
  std::vector<Trace::Event> events_;  // of the thread that exchanges
  Clock::time_point left_;            // when the last call came to its end

  std::size_t most_on_their_way_ = 0;  // bytes in buffers of two rounds
  std::uint64_t bytes_done_ = 0;
  std::uint64_t bytes_in_all_ = 0;
  std::uint64_t bytes_received_ = 0;
};

}  // namespace shardwright
