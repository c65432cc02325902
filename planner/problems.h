#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "planner/error.h"

namespace shardwright {

/// Lines of an error that are told; of more it says how many there are. A model has thousands of tensors.
inline constexpr std::size_t lines_told = 20;

/// `headline`, and below it the first of the lines, indented; "and 7 more" for the rest.
std::string in_lines(std::string headline, const std::vector<std::string>& lines);

/// Collects what is wrong, so that a caller is told of it at once.
struct Problems {
  std::vector<std::string> lines;
  std::vector<std::string> of_all = {};  ///< Faults of all together, told however many lines there are

  void add(std::string line) { lines.push_back(std::move(line)); }

  /// Throws Error(kind) with in_lines(), and `of_all` behind it, if there is either.
  void throw_if_any(ErrorKind kind, const std::string& headline) const;
};

/// "0-3, 7" for sorted numbers 0, 1, 2, 3, 7.
std::string ranges_of(const std::vector<std::int64_t>& numbers);

/// One line for each group of names that differ in one number only, that number given as ranges:
/// "model.layers.{0-3, 7}.norm.weight". Keeps the order of first appearance.
std::vector<std::string> grouped_names(const std::vector<std::string>& names);

}  // namespace shardwright
