// Ranks of one node that read together through shared memory: the part of CooperativeLoad that is for them.

#include <algorithm>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>

#include "planner/error.h"
#include "storage/device/staging.h"
#include "storage/load/cooperative_load.h"
#include "storage/load/parts_of_pieces.h"
#include "storage/seconds.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

/// Of each rank of a node: its reads under way, and pieces that it has yet to decode while others are ahead.
/// More would take longer to be made, page by page, than it saves.
constexpr std::uint64_t most_ring_bytes_of_rank = std::uint64_t{32} << 20;
constexpr std::uint64_t fewest_slots = 2;

/// Longest wait of a thread for its own reads, meanwhile it sees nothing of others; and for others, of which
/// one may have ended.
constexpr std::chrono::milliseconds while_reading{1};
constexpr std::chrono::milliseconds while_idle{50};

/// Notes when this began and has ended, for a thread's figures and trace.
void note(const char* what, std::int64_t tensor, std::uint64_t bytes, Clock::time_point begin,
          std::vector<Trace::Event>* events, Clock::duration& sum) {
  const Clock::time_point end = Clock::now();
  sum += end - begin;
  if (events != nullptr) events->push_back({what, tensor, bytes, begin, end});
}

}  // namespace

/// What this rank has yet to take, in the order of the pieces. Thread-safe.
class CooperativeLoad::SharesToTake {
 public:
  struct Item {
    std::size_t piece;
    const SharedPiece::Share* share;
  };

  SharesToTake(const Cooperation& cooperation, int rank) {
    for (std::size_t p = 0; p < cooperation.pieces.size(); ++p) {
      for (const SharedPiece::Share& share : cooperation.pieces[p].shares) {
        if (share.rank == rank) items_.push_back({p, &share});
      }
    }
    taken_.resize(items_.size());
  }

  /// One whose piece is in the ring; null if there is none now.
  const Item* next(const PieceRing& ring, std::uint64_t slots) {
    const std::lock_guard lock(mutex_);
    for (std::size_t i = first_; i < items_.size() && items_[i].piece < items_[first_].piece + slots; ++i) {
      if (taken_[i] || !ring.is_there(items_[i].piece)) continue;
      taken_[i] = true;
      while (first_ < items_.size() && taken_[first_]) ++first_;
      return &items_[i];
    }
    return nullptr;
  }

  bool none_left() const {
    const std::lock_guard lock(mutex_);
    return first_ == items_.size();
  }

 private:
  mutable std::mutex mutex_;
  std::vector<Item> items_;
  std::vector<bool> taken_;
  std::size_t first_ = 0;  // that is not taken
};

/// What the threads of one rank share.
struct CooperativeLoad::NodeRun {
  PieceRing& ring;
  const PieceRing::Sizes sizes;
  const std::chrono::milliseconds timeout;
  SharesToTake shares;
  std::atomic<std::uint64_t> bytes_done = 0;
  std::atomic<std::uint64_t> bytes_received = 0;
};

PieceRing::Sizes CooperativeLoad::ring_sizes() const {
  PieceRing::Sizes sizes;
  sizes.ranks = static_cast<std::uint32_t>(ranks_);
  sizes.slot_bytes = TaskReader::memory_bytes_of(limits_.piece_bytes);
  sizes.pieces = cooperation_.pieces.size();
  const std::uint64_t of_rank = std::min(most_ring_bytes_of_rank, limits_.round_bytes * buffers_of_rounds);
  const std::uint64_t most = std::max(fewest_slots, of_rank * ranks_ / sizes.slot_bytes);
  sizes.slots = static_cast<std::uint32_t>(std::clamp(sizes.pieces, fewest_slots, most));
  return sizes;
}

void CooperativeLoad::join_node(SharedMemory memory) {
  memory_.emplace(std::move(memory));
  ring_.emplace(*memory_, ring_sizes(), static_cast<std::uint32_t>(rank_));
  ring_->join();
}

void CooperativeLoad::leave_node() noexcept {
  ring_.reset();
  memory_.reset();
}

bool CooperativeLoad::read_on_node(std::chrono::milliseconds timeout, const LoadOptions& options) {
  try {
    const bool all_well = run_on_node(timeout, options);
    for (Reader& reader : readers_) reader.tasks->give_up();
    if (all_well) leave_node();
    return all_well;
  } catch (...) {
    ring_->fail();
    throw;
  }
}

bool CooperativeLoad::run_on_node(std::chrono::milliseconds timeout, const LoadOptions& options) {
  PieceRing& ring = *ring_;
  const PieceRing::Sizes sizes = ring_sizes();
  NodeRun work{ring, sizes, timeout, SharesToTake(cooperation_, rank_)};
  most_on_their_way_ = PieceRing::bytes_of(sizes) / ranks_;
  readers_.resize(static_cast<std::size_t>(sizes.pieces == 0 ? 0 : resources_.threads));
  for (Reader& reader : readers_) {
    const TaskReader::Buffers buffers{resources_.buffers_per_thread,
                                      sizes.slot_bytes,
                                      false,
                                      nullptr,
                                      nullptr,
                                      [&ring](const ReadTask& task) { return ring.slot_of(task.transfer); }};
    reader.tasks = std::make_unique<TaskReader>(catalog_, files_, reading_.in_background, buffers);
    reader.pinned = std::make_unique<Staging>(false, devices_.calls());
  }
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr failure;
  std::thread threads([&] {
    try {
      for_each_index(readers_.size(), resources_.threads, [&](std::size_t i) {
        try {
          devices_.use_one();
          work_on_node(readers_[i], work);
        } catch (...) {
          ring.fail();  // or this rank's other threads would go on
          throw;
        }
      });
    } catch (...) {
      failure = std::current_exception();
    }
    const std::lock_guard lock(mutex);
    done = true;
    changed.notify_all();
  });
  naming_what_is_written([&] {
    try {
      for (std::unique_lock lock(mutex); !done; changed.wait_for(lock, std::chrono::milliseconds(100))) {
        lock.unlock();
        for (const auto& check : {options_.check_for_interrupt, options.check_for_interrupt})
          if (check) check();
        if (options.progress) options.progress(work.bytes_done, bytes_in_all_);
        lock.lock();
      }
    } catch (...) {
      ring.fail();
      threads.join();
      throw;
    }
    threads.join();
    if (failure) std::rethrow_exception(failure);
  });
  bytes_done_ = work.bytes_done;
  bytes_received_ = work.bytes_received;
  return !ring.failed();
}

/// Reads what nobody reads yet, and takes what is there, until all pieces are read and this rank has its
/// shares.
void CooperativeLoad::work_on_node(Reader& reader, NodeRun& run) {
  struct GivesUp {
    TaskReader& tasks;
    ~GivesUp() { tasks.give_up(); }
  };
  PieceRing& ring = run.ring;
  TaskReader& tasks = *reader.tasks;
  const GivesUp gives_up{tasks};
  std::vector<Trace::Event>* const events = trace_.is_wanted() ? &reader.events : nullptr;
  Clock::time_point last_event = Clock::now();
  while (!ring.failed()) {
    const std::uint32_t seen = ring.events();
    bool idle = true;
    const auto arrived = [&](StagedTask& staged) {
      publish(reader, staged, run);
      tasks.release(staged);
      idle = false;
    };
    const Clock::time_point begin = Clock::now();
    while (StagedTask* const staged = tasks.wait_for({})) arrived(*staged);
    while (tasks.has_room()) {
      const std::optional<std::uint64_t> piece = ring.next_to_read();
      if (!piece) break;
      idle = false;
      ReadTask task = task_of(cooperation_.pieces[*piece], catalog_, limits_.costs);
      task.transfer = static_cast<std::uint32_t>(*piece);
      reader.files.insert(catalog_.tensors[task.source].file);
      if (task.scale_source >= 0)
        reader.files.insert(catalog_.tensors[static_cast<std::size_t>(task.scale_source)].file);
      JoinedTasks alone{{task}};
      StagedTask* const staged = tasks.begin(alone);
      if (staged == nullptr) continue;
      note("read", task.source, task.bytes(), begin, events, reader.figures.reading);
      arrived(*staged);
      break;  // it is in this processor's cache now
    }
    if (const SharesToTake::Item* const item = run.shares.next(ring, run.sizes.slots)) {
      take(reader, item->piece, *item->share, run);
      idle = false;
    }
    if (!idle) {
      last_event = Clock::now();
      continue;
    }
    if (!tasks.is_busy() && run.shares.none_left() && ring.all_are_read()) break;
    if (tasks.is_busy()) {
      if (StagedTask* const staged = tasks.wait_for(while_reading)) arrived(*staged);
    } else {
      ring.wait(seen, while_idle);
    }
    if (!idle || ring.events() != seen) last_event = Clock::now();
    note("wait", -1, 0, begin, events, reader.figures.reading);
    if (tasks.is_busy() || Clock::now() - last_event < while_idle) continue;
    if (const std::optional<std::uint32_t> gone = ring.gone()) {
      throw Error(ErrorKind::io, "rank " + std::to_string(*gone) + " of those that read together (process " +
                                     std::to_string(ring.process_of(*gone).number) + ") has ended");
    }
    if (Clock::now() - last_event < run.timeout) continue;
    throw Error(ErrorKind::io, "the ranks that read together have waited " +
                                   std::to_string(run.timeout.count() / 1000) +
                                   " s for each other: one of them has stopped, or its storage has");
  }
}

void CooperativeLoad::publish(Reader& reader, const StagedTask& staged, NodeRun& run) const {
  ReadingFigures boxes;
  boxes.count(staged.task.weights);
  boxes.count(staged.task.scales);
  reader.figures.boxes_with_gaps += boxes.boxes_with_gaps;
  reader.figures.boxes_in_pieces += boxes.boxes_in_pieces;
  const std::uint32_t piece = staged.task.transfer;
  const std::byte* const slot = run.ring.slot_of(piece);
  PieceRing::Place place{static_cast<std::uint64_t>(staged.elements - slot), 0,
                         static_cast<std::uint32_t>(rank_)};
  if (staged.scales != nullptr) place.scales = static_cast<std::uint64_t>(staged.scales - slot);
  run.ring.publish(piece, place, static_cast<std::uint32_t>(cooperation_.pieces[piece].shares.size()));
}

/// Places a share of a piece that is in the ring, and gives it back.
void CooperativeLoad::take(Reader& reader, std::size_t number, const SharedPiece::Share& share,
                           NodeRun& run) {
  const Clock::time_point begin = Clock::now();
  const SharedPiece& piece = cooperation_.pieces[number];
  const ReadTask task = task_of(piece, catalog_, limits_.costs);
  const PieceRing::Place place = run.ring.place_of(number);
  const std::uint64_t most = run.sizes.slot_bytes;
  const auto fits = [&](std::uint64_t offset, const BoxReading& reading) {
    return offset <= most && reading.staged_bytes <= most - offset;
  };
  if (!fits(place.elements, task.weights) || !fits(place.scales, task.scales)) {
    throw Error(ErrorKind::io, "the memory that ranks share has been damaged: tensor " +
                                   catalog_.tensors[piece.source].name + " lies outside its place");
  }
  const std::byte* const slot = run.ring.slot_of(number);
  BoxInMemory read{task.box, {slot + place.elements, task.weights.staged_strides}};
  if (piece.scales >= 0) read.scales = {slot + place.scales, task.scales.staged_strides};
  std::size_t bytes = 0;
  BoxInMemory part = part_of_share(piece, share, read, catalog_, bytes);
  const std::uint64_t size = bytes_of_share(piece, share, catalog_);
  if (devices_.of(specs_[plan_.transfers[share.transfer].destination]) != nullptr) {
    std::byte* const pinned = reader.pinned->room_for(size, catalog_.tensors[piece.source].name);
    pack(piece, share, part, catalog_, pinned);
    part = packed_part(piece, share, pinned, catalog_);
    bytes = size;
  }
  place_part(share.transfer, part, bytes);
  run.bytes_done += size;
  if (place.reader != static_cast<std::uint32_t>(rank_)) run.bytes_received += size;
  run.ring.give_back(number);
  note("decode", piece.source, size, begin, trace_.is_wanted() ? &reader.events : nullptr,
       reader.figures.decoding);
}

}  // namespace shardwright
