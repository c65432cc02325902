#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernels/product.h"
#include "planner/names/catalog.h"
#include "storage/progress.h"

namespace shardwright {

/// A tensor of scales, or a chunk of one, of an encoded weight.
struct StoredScales {
  std::size_t tensor;   ///< index into Catalog::tensors
  Product product;      ///< by which a load decodes the weight
  bool is_global;       ///< one more factor of all the weight's scales
  std::uint64_t bytes;  ///< from the tensor's first one on, that loads look at: rows to spare they do not
};

/// Those of all weights that a load can decode.
std::vector<StoredScales> scales_in(const Catalog& catalog);

/// What no load takes of some scales.
struct ScaleFault {
  std::size_t tensor;  ///< index into Catalog::tensors of the scales
  std::string line;    ///< names tensor, file and index
};

/// Reads scales on so many threads, and says of each tensor the first that no encoder writes. Sorted by
/// tensor. Counts the bytes in `progress`, whose total the caller has set. Throws Error(io) as InputFile.
std::vector<ScaleFault> faults_of_scales(const Catalog& catalog, const std::vector<StoredScales>& scales,
                                         int threads, Progress* progress);

}  // namespace shardwright
