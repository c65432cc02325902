#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"
#include "planner/names/weight_map.h"
#include "planner/save/rank_states.h"
#include "storage/jobs/export_checkpoint.h"
#include "storage/write/export.h"
#include "storage/write/export_report.h"

namespace shardwright {

/// A weight of a saved training: its name for the trainer's model, and that in the saved state dict.
struct SavedWeight {
  std::string fqn;
  std::string stored;
};

/// What a checkpoint of training that is sharded, or of safetensors, has stored; headers of the files of
/// these weights have been compared with what the manifest says. Throws Error as read_manifest() and
/// read_catalog().
Catalog catalog_of_training(const std::filesystem::path& source, const std::vector<SavedWeight>& weights,
                            int threads);

/// One rank's part of converting a checkpoint: rows of its tensors, that are read, decoded to BF16 where they
/// are encoded, and written, a few at a time.
class Conversion {
 public:
  /// Of a Hugging Face checkpoint. Throws Error as read_catalog(), and Error(argument) for an unknown
  /// quantization.
  Conversion(const std::filesystem::path& source, const ConvertOptions& options, int rank, int ranks);

  /// Of a checkpoint of training, whose tensors the catalog has under the names of the saved state dict: the
  /// weights become what an export of the trainer's model would be, with this template and by these rules, to
  /// which it refers; null: without one, and by those of model and layout. A matrix, one of a stack as well,
  /// is in memory as a whole, as blocks may lie anywhere in it. Throws Error(mismatch) for a weight that the
  /// catalog lacks, and as above.
  Conversion(Catalog source, const std::vector<SavedWeight>& weights, const ConvertOptions& options, int rank,
             int ranks, const Catalog* template_catalog = nullptr, const WeightMap* map = nullptr);
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

  void ask_for(const ConvertOptions& options);
  void add_spec(const NativeTensor& tensor, int rank, int ranks);
  void transpose_blocks();

  Catalog catalog_;
  Catalog template_;    ///< the same, as far as names and shapes stay
  WeightMap map_;       ///< of the template
  WeightMap load_map_;  ///< of the catalog
  ExportRequest request_;
  std::map<std::string, std::string> stored_;  ///< SavedWeight, by its fqn; empty: no training
  std::vector<TensorSpec> specs_;
  RankState state_;
  ConvertOptions options_;
  std::size_t largest_matrix_ = 0;  ///< bytes; of a training
};

}  // namespace shardwright
