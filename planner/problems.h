#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/error.h"

namespace shardwright {

/// Collects what is wrong, so that a caller is told all of it at once.
struct Problems {
  std::vector<std::string> lines;

  void add(std::string line) { lines.push_back(std::move(line)); }

  /// Throws Error(kind) with all lines under `headline` if there are any.
  void throw_if_any(ErrorKind kind, const std::string& headline) const;
};

/// "0-3, 7" for sorted numbers 0, 1, 2, 3, 7.
std::string ranges_of(const std::vector<std::int64_t>& numbers);

/// One line for each group of names that differ in one number only, that number given as ranges:
/// "model.layers.{0-3, 7}.norm.weight". Keeps the order of first appearance.
std::vector<std::string> grouped_names(const std::vector<std::string>& names);

}  // namespace shardwright
