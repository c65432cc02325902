#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/block_scales.h"
#include "planner/catalog.h"
#include "planner/tensor_spec.h"
#include "planner/weight_map.h"

namespace shardwright {

/// This box of this source tensor, with the scales it needs, is that box of that destination shard.
struct Transfer {
  std::uint32_t source = 0;  ///< index into Catalog::tensors
  std::int64_t scales =
      -1;  ///< index into Catalog::tensors of the tensor (or chunk) with the scales; -1: none needed
  Encoding encoding;
  Box source_box;  ///< inside the source tensor (or chunk)
  Box scale_box;   ///< inside the tensor (or chunk) of scales, if there is one; of the rank that it has

  /// Where the first row and column of source_box lie inside the first block of scale_box.
  std::int64_t first_row_in_block = 0;
  std::int64_t first_column_in_block = 0;

  std::uint32_t destination = 0;  ///< index into the specs
  Shape destination_offset;       ///< where source_box's first element goes in the local tensor
  std::vector<int> axes;          ///< source dimension i runs along dimension axes[i] of the local tensor

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

  // What is left out, so that nothing is silent. Sorted.
  std::vector<std::string> unused;      ///< known HF weights that the trainer has no tensor for
  std::vector<std::string> unknown;     ///< HF tensors that no rule knows (strict = false)
  std::vector<std::string> not_loaded;  ///< the trainer's tensors that the checkpoint lacks (allow_missing)

  std::string unknown_fields;  ///< of a plan that a later release has encoded; kept when encoded again

  /// Equal in all but the time it took.
  bool operator==(const LoadPlan& other) const;
};

struct LoadPlanOptions {
  bool strict = true;          ///< an HF tensor that no rule knows is an error
  bool allow_missing = false;  ///< a trainer's tensor that the checkpoint lacks altogether is left as it is

  /// What the caller has found wrong with its tensors already; told together with what the planner finds.
  std::vector<std::string> problems;

  bool parts_elsewhere = false;  ///< experts that this rank holds nothing of need not be in the catalog
  bool exporting = false;        ///< read from right to left: destinations are read, and may share memory

  /// What the scales of the catalog may be.
  std::vector<ScaleBlocks> scale_blocks = known_scale_blocks();
};

/// Plans a load, and proves it: every element of every destination is written exactly once, from a source
/// that is there with the shape and a dtype that fit. Throws one Error(mismatch) that lists all that is
/// wrong, by name, with what was expected and found. Reads no tensor data and writes nothing.
LoadPlan plan_load(const std::vector<TensorSpec>& specs, const Catalog& catalog, const WeightMap& map,
                   const LoadPlanOptions& options = {});

/// The box of the destination's local tensor that a transfer writes.
Box written_box(const Transfer& transfer);

/// The scales that a part of a transfer's source box needs, in the coordinates of its scale_box. The transfer
/// must be block-scaled.
Box scale_box_of_part(const Transfer& transfer, const Box& part);

/// Puts the transfers of a plan in the order of the files and fills in its figures.
void order_and_count(LoadPlan& plan, const std::vector<TensorSpec>& specs, const Catalog& catalog);

}  // namespace shardwright
