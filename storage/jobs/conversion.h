#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"
#include "planner/names/weight_map.h"
#include "planner/save/rank_states.h"
#include "storage/jobs/convert_checkpoint.h"
#include "storage/write/export.h"
#include "storage/write/export_report.h"

namespace shardwright {

/// One rank's part of converting a Hugging Face checkpoint: rows of its tensors, that are read, decoded to
/// BF16 where they are encoded, and written, a few at a time.
class Conversion {
 public:
  /// Throws Error as read_catalog(), and Error(argument) for an unknown quantization.
  Conversion(const std::filesystem::path& source, const ConvertOptions& options, int rank, int ranks);
  Conversion(const Conversion&) = delete;
  Conversion& operator=(const Conversion&) = delete;

  /// For Publication, of which the coordinator has one. Refers to this.
  const ExportRequest& request() const { return request_; }

  /// What Publication::plan() is to be given. Reads all values where a rule has a global scale.
  std::string describe() const;

  /// Writes what Publication::plan() has said; errors as write_share(), and load().
  ExportReport write(const std::string& told) const;

 private:
  ValuesElsewhere values() const;

  void transpose_blocks();

  Catalog catalog_;
  Catalog template_;    ///< the same, as far as names and shapes stay
  WeightMap map_;       ///< of the template
  WeightMap load_map_;  ///< of the catalog
  ExportRequest request_;
  std::vector<TensorSpec> specs_;
  RankState state_;
  ConvertOptions options_;
};

}  // namespace shardwright
