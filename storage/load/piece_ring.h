#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "storage/load/shared_memory.h"

namespace shardwright {

/// Pieces of a checkpoint on their way from files to the ranks of a node, in memory that these share. Piece p
/// lies in slot p % slots. Some rank reads it there, all that take a share of it decode from there, and with
/// the last of them the slot is free for piece p + slots. No rank waits for another but for a slot or a
/// piece. Thread-safe, on all ranks at once. What other ranks have written into the memory is checked.
class PieceRing {
 public:
  struct Sizes {
    std::uint32_t ranks = 1;
    std::uint32_t slots = 2;
    std::uint64_t slot_bytes = 0;  ///< whole pages
    std::uint64_t pieces = 0;      ///< that pass through it
  };

  /// Where a piece lies, as offsets into its slot.
  struct Place {
    std::uint64_t elements = 0;
    std::uint64_t scales = 0;
    std::uint32_t reader = 0;  ///< the rank that has read it
  };

  /// What the memory must have room for.
  static std::size_t bytes_of(const Sizes& sizes);

  /// The ring in memory that was all zeros when the first rank came. All ranks give the same sizes. The
  /// memory must outlive it.
  PieceRing(const SharedMemory& memory, const Sizes& sizes, std::uint32_t rank);

  /// Takes part as this process: until then the others do not see it end.
  void join();

  /// The next piece that nobody reads yet, if its slot is free: the caller reads it, into its slot.
  std::optional<std::uint64_t> next_to_read();
  bool all_are_read() const;  ///< or are being read

  std::byte* slot_of(std::uint64_t piece) const;

  /// The piece is there, for so many shares (at least 1) to be taken of it.
  void publish(std::uint64_t piece, Place place, std::uint32_t shares);

  bool is_there(std::uint64_t piece) const;

  /// REQUIRES: is_there(piece), and a share of it was not given back yet. Not to be trusted.
  Place place_of(std::uint64_t piece) const;

  /// A share of the piece has been taken.
  void give_back(std::uint64_t piece);

  /// A number that changes with whatever happens.
  std::uint32_t events() const;

  /// Waits until something has happened since events() gave that number, or for so long.
  void wait(std::uint32_t since, std::chrono::microseconds longest);

  /// This rank has failed: nothing more happens.
  void fail();
  std::optional<std::uint32_t> failed() const;  ///< the first rank that has

  /// A rank that has joined, and whose process has ended meanwhile.
  std::optional<std::uint32_t> gone() const;
  NodeProcess process_of(std::uint32_t rank) const;

 private:
  struct Head;
  struct Member;
  struct Slot;

  Head& head() const;
  Member& member(std::uint32_t rank) const;
  Slot& slot(std::uint64_t piece) const;
  void happened();

  std::byte* const memory_;
  const Sizes sizes_;
  const std::uint32_t rank_;
};

}  // namespace shardwright
