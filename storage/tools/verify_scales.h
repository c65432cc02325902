#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "planner/names/catalog.h"
#include "storage/progress.h"

namespace shardwright {

/// What no load takes of the scales of a checkpoint's encoded weights.
struct ScaleFault {
  std::size_t tensor;  ///< index into Catalog::tensors of the scales
  std::string line;    ///< names tensor, file and index
};

/// Reads all scales and global scales of weights whose encoding is known, on so many threads, and says of
/// each tensor the first that no encoder writes. Sorted by tensor. `progress` counts bytes. Throws Error(io)
/// as InputFile.
std::vector<ScaleFault> faults_of_scales(const Catalog& catalog, int threads, Progress* progress);

}  // namespace shardwright
