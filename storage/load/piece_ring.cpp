#include "storage/load/piece_ring.h"

#include <stdexcept>

#include "storage/load/shared_events.h"
#include "storage/memory_units.h"
#include "storage/rounded_up.h"

namespace shardwright {
/// All of these begin as zeros. Each stands in cache lines of its own, as many threads write them.
// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding)
struct alignas(64) PieceRing::Head {
  std::atomic<std::uint64_t> next;  // piece to be read
  SharedEvents events;
  std::atomic<std::uint32_t> failed;  // rank + 1
};

struct alignas(64) PieceRing::Member {
  NodeMember node;
};

struct alignas(64) PieceRing::Slot {
  std::atomic<std::uint64_t> there;  // piece + 1
  std::atomic<std::uint64_t> freed;  // how often
  std::atomic<std::uint32_t> left;   // shares to be taken
  Place place;
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

std::size_t PieceRing::bytes_of(const Sizes& sizes) {
  const std::size_t before = sizeof(Head) + sizes.ranks * sizeof(Member) + sizes.slots * sizeof(Slot);
  return rounded_up(before, page) + sizes.slots * sizes.slot_bytes;
}

PieceRing::PieceRing(const SharedMemory& memory, const Sizes& sizes, std::uint32_t rank)
    : memory_(memory.data()), sizes_(sizes), rank_(rank) {
  if (memory.size() < bytes_of(sizes) || rank >= sizes.ranks || sizes.slots == 0)
    throw std::logic_error("PieceRing: too little memory, or a rank that is none");
}

PieceRing::Head& PieceRing::head() const { return *reinterpret_cast<Head*>(memory_); }

PieceRing::Member& PieceRing::member(std::uint32_t rank) const {
  return reinterpret_cast<Member*>(memory_ + sizeof(Head))[rank];
}

PieceRing::Slot& PieceRing::slot(std::uint64_t piece) const {
  return reinterpret_cast<Slot*>(memory_ + sizeof(Head) +
                                 sizes_.ranks * sizeof(Member))[piece % sizes_.slots];
}

std::byte* PieceRing::slot_of(std::uint64_t piece) const {
  const std::size_t before = bytes_of(sizes_) - sizes_.slots * sizes_.slot_bytes;
  return memory_ + before + piece % sizes_.slots * sizes_.slot_bytes;
}

void PieceRing::join() { member(rank_).node.join(); }

std::optional<std::uint64_t> PieceRing::next_to_read() {
  std::uint64_t piece = head().next.load();
  while (piece < sizes_.pieces && slot(piece).freed.load(std::memory_order_acquire) == piece / sizes_.slots) {
    if (head().next.compare_exchange_weak(piece, piece + 1)) return piece;
  }
  return std::nullopt;
}

bool PieceRing::all_are_read() const { return head().next.load() >= sizes_.pieces; }

void PieceRing::publish(std::uint64_t piece, Place place, std::uint32_t shares) {
  Slot& slot = this->slot(piece);
  slot.place = place;
  slot.left.store(shares);
  slot.there.store(piece + 1, std::memory_order_release);
  happened();
}

bool PieceRing::is_there(std::uint64_t piece) const {
  return slot(piece).there.load(std::memory_order_acquire) == piece + 1;
}

PieceRing::Place PieceRing::place_of(std::uint64_t piece) const { return slot(piece).place; }

void PieceRing::give_back(std::uint64_t piece) {
  Slot& slot = this->slot(piece);
  if (slot.left.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  slot.freed.fetch_add(1, std::memory_order_release);
  happened();
}

std::uint32_t PieceRing::events() const { return head().events.number.load(); }

void PieceRing::happened() { head().events.happened(); }

void PieceRing::wait(std::uint32_t since, std::chrono::microseconds longest) {
  head().events.wait(since, longest);
}

void PieceRing::fail() {
  std::uint32_t none = 0;
  head().failed.compare_exchange_strong(none, rank_ + 1);
  happened();
}

std::optional<std::uint32_t> PieceRing::failed() const {
  const std::uint32_t failed = head().failed.load();
  return failed == 0 ? std::nullopt : std::optional(failed - 1);
}

std::optional<std::uint32_t> PieceRing::gone() const {
  for (std::uint32_t rank = 0; rank < sizes_.ranks; ++rank) {
    if (member(rank).node.is_gone()) return rank;
  }
  return std::nullopt;
}

NodeProcess PieceRing::process_of(std::uint32_t rank) const { return member(rank).node.process; }

}  // namespace shardwright
