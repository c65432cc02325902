#pragma once

#include <cstdint>
#include <map>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "storage/files/open_files.h"

namespace shardwright {

/// The small tensors beside encoded weights whose values a load needs before it places anything: global
/// scales, and the shapes that compressed-tensors writes.
class Companions {
 public:
  /// Reads those of all transfers of the plan, on so many threads (0: all processors). Throws Error(io) as
  /// InputFile, and Error(mismatch), naming the tensors, for a global scale that is negative, zero where it
  /// divides, or not finite, and for a shape that is not the weight's. Nothing has been written then.
  Companions(const LoadPlan& plan, const Catalog& catalog, OpenFiles& files, int threads);

  /// The global scale of a transfer; 1 if it has none.
  float global_of(const Transfer& transfer) const;

  std::uint64_t bytes_read() const { return bytes_read_; }
  std::uint64_t requests() const { return requests_; }

 private:
  std::map<std::int64_t, float> globals_;  // by index into Catalog::tensors
  std::uint64_t bytes_read_ = 0;
  std::uint64_t requests_ = 0;
};

}  // namespace shardwright
