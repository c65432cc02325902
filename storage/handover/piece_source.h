#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/save/rank_states.h"
#include "storage/handover/encode_boxes.h"
#include "storage/handover/piece_order.h"
#include "storage/handover/pieces.h"
#include "storage/rounded_up.h"

namespace shardwright {

/// Bytes of a piece that no task gives: a part of what is the template's, or a small tensor that is made.
struct ReadyBytes {
  std::uint32_t tensor = 0;
  Box box;
  std::vector<std::byte> made;  ///< empty: the template's
};

/// What is encoded at once: a task, or given bytes, and the pieces that come of it.
struct PieceUnit {
  std::int64_t task = -1;   ///< index into the work's tasks; -1: given
  std::int64_t given = -1;  ///< index into the given bytes
  std::size_t bytes = 0;    ///< that its pieces take in the bucket
};

struct PieceSource {
  std::unique_ptr<Catalog> template_catalog;  ///< that the request points at, if nobody else keeps it
  std::unique_ptr<EncodingSource> encoding;
  std::vector<ReadyBytes> given;
  std::vector<PieceUnit> units;  ///< in their order
  std::size_t next = 0;          ///< the first that has not been handed over
  std::size_t bucket_bytes = 0;  ///< see Pieces
  std::size_t room = 0;          ///< that the fullest bucket takes
  std::uint64_t bytes = 0;
  HandoverOrder order;
  PieceSums* sums = nullptr;  ///< of the time before; see PieceOptions
  std::size_t peak_staging_bytes = 0;
};

/// From what plan_export() has said to this rank. Specs, state and request are those of describe_export().
/// Throws as EncodingSource, Error(argument) for a bucket that is too small.
std::unique_ptr<PieceSource> piece_source(const std::string& share, const std::vector<TensorSpec>& specs,
                                          const RankState& state, const ExportRequest& request,
                                          std::size_t bucket_bytes, PieceSums* changed_since,
                                          const ExportWriting& options);

/// Each piece of a bucket begins at a multiple of it.
inline constexpr std::size_t piece_alignment = 64;

inline std::size_t room_for_piece(std::size_t bytes) { return rounded_up(bytes, piece_alignment); }

}  // namespace shardwright
