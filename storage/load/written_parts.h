#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "planner/error.h"
#include "planner/load/load_plan.h"
#include "planner/names/tensor_spec.h"

namespace shardwright {

/// How much of each destination a load has begun to write, and how much it is known to have written: so that
/// one that fails can say what it leaves behind. Thread-safe.
class WrittenParts {
 public:
  WrittenParts(const LoadPlan& plan, std::size_t destinations);

  void begin(std::uint32_t destination, std::int64_t elements) { begun_[destination] += elements; }
  void end(std::uint32_t destination, std::int64_t elements) { ended_[destination] += elements; }

  /// Names of the tensors that may have been written to, and are not known to be whole.
  std::vector<std::string> partly_written(const std::vector<TensorSpec>& specs) const;

  /// The error with those names.
  Error with_names(const Error& error, const std::vector<TensorSpec>& specs) const;

 private:
  std::vector<std::int64_t> wanted_;  // elements, by index of the destination, like the others
  std::vector<std::atomic<std::int64_t>> begun_;
  std::vector<std::atomic<std::int64_t>> ended_;
};

}  // namespace shardwright
