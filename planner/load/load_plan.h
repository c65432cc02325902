#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "planner/load/transfer.h"
#include "planner/names/catalog.h"
#include "planner/names/encodings.h"
#include "planner/names/tensor_spec.h"
#include "planner/names/weight_map.h"

namespace shardwright {

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

  /// What the scales of the catalog may be.
  std::vector<KnownEncoding> encodings = known_encodings();
};

/// Plans a load, and proves it: every element of every destination is written exactly once, from a source
/// that is there with the shape and a dtype that fit. Throws one Error(mismatch) that tells what is
/// wrong, by name, with what was expected and found. Reads no tensor data and writes nothing.
LoadPlan plan_load(const std::vector<TensorSpec>& specs, const Catalog& catalog, const WeightMap& map,
                   const LoadPlanOptions& options = {});

/// How the transfers, all to one destination, fail to write each element of its local tensor once, for
/// messages; empty if they do write it. They must lie inside.
std::string fault_of_writing(const Shape& local_shape, std::span<const Transfer> transfers);

/// Puts the transfers of a plan in the order of the files and fills in its figures.
void order_and_count(LoadPlan& plan, const std::vector<TensorSpec>& specs, const Catalog& catalog);

}  // namespace shardwright
