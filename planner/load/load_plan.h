#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"
#include "planner/names/weight_map.h"

namespace shardwright {

struct KnownEncoding;  // planner/names/encodings.h

/// This box of this source tensor, with the scales it needs, is those elements of that destination shard.
///
/// A source [6, 10] whose even columns are the rows of a destination [5, 6] is seen in the view [6, 5, 2]:
/// the source box is [0:6, 0:5, 0:1], the axes are {1, 0, -1}. Read from right to left it writes every other
/// column.
struct Transfer {
  std::uint32_t source = 0;  ///< index into Catalog::tensors
  std::int64_t scales =
      -1;  ///< index into Catalog::tensors of the tensor (or chunk) with the scales; -1: none needed
  std::int64_t global = -1;  ///< the same of the global scale: one number; -1: there is none
  Encoding encoding;

  /// The sizes of the view in which source_box is a box: the source's dimensions, each in one factor or more.
  /// Empty: the source's own shape. In another one, with scales, the last dimension is one factor, and a
  /// block has one row; then the scales are seen in the same view.
  Shape source_view;
  Box source_box;  ///< inside the source tensor (or chunk), as it is seen
  Box scale_box;   ///< inside the tensor (or chunk) of scales, if there is one, as it is seen

  /// Where the first row and column of source_box lie inside the first block of scale_box.
  std::int64_t first_row_in_block = 0;
  std::int64_t first_column_in_block = 0;

  std::uint32_t destination = 0;  ///< index into the specs
  Shape destination_offset;       ///< where source_box's first element goes in the local tensor

  /// Factor i of the source runs along dimension axes[i] of the local tensor; -1: it has one index in
  /// source_box.
  std::vector<int> axes;

  /// Indices of that dimension from one index of factor i to the next; at least 1. Empty: 1 for all.
  Shape steps;

  bool operator==(const Transfer&) const = default;
};

/// What one rank does to load: a list of Transfers that together write every element of every destination
/// once.
struct LoadPlan {
  std::vector<Transfer> transfers;  ///< in the order of the files, so that reading goes forward

  std::int64_t tensors = 0;         ///< HF tensors, scales included, of which this rank needs at least a part
  std::uint64_t bytes_needed = 0;   ///< that those parts take in the files, each byte counted once
  std::uint64_t bytes_written = 0;  ///< that the destinations take
  double seconds = 0;               ///< that planning took

  /// Destinations (indices into the specs) that the checkpoint has nothing for, as it is all zero; see
  /// WeightMap::absent. No transfer writes them.
  std::vector<std::uint32_t> zeros;

  // What is left out, so that nothing is silent. Sorted.
  std::vector<std::string> unused;      ///< known HF weights that the trainer has no tensor for
  std::vector<std::string> unknown;     ///< HF tensors that no rule knows (strict = false)
  std::vector<std::string> not_loaded;  ///< the trainer's tensors that the checkpoint lacks (allow_missing)

  std::string unknown_fields;  ///< of a plan that a later release has encoded; kept when encoded again

  /// Equal in all but the time it took.
  bool operator==(const LoadPlan& other) const;
};

/// What a plan allows, and what it is for.
struct LoadPlanOptions {
  bool strict = true;          ///< an HF tensor that no rule knows, or last layers left out, are errors
  bool allow_missing = false;  ///< a trainer's tensor that the checkpoint lacks altogether is left as it is

  /// What the caller has found wrong with its tensors already; told together with what the planner finds.
  std::vector<std::string> problems;

  bool parts_elsewhere = false;  ///< experts that this rank holds nothing of need not be in the catalog
  bool exporting = false;        ///< read from right to left: destinations are read, and may share memory

  /// The trainer's own checkpoint: a destination of the stored dtype gets what is stored, scales or not, and
  /// destinations may share memory.
  bool resuming = false;

  /// What is loaded, as messages call it; empty: the catalog's directory.
  std::string what = {};

  /// What the scales of the catalog may be, which the caller keeps; null: any of known_encodings().
  const std::vector<KnownEncoding>* encodings = nullptr;
};

/// Plans a load, and proves it: every element of every destination is written exactly once, from a source
/// that is there with the shape and a dtype that fit. Throws one Error(mismatch) that tells what is
/// wrong, by name, with what was expected and found. Reads no tensor data and writes nothing.
LoadPlan plan_load(const std::vector<TensorSpec>& specs, const Catalog& catalog, const WeightMap& map,
                   const LoadPlanOptions& options = {});

}  // namespace shardwright
