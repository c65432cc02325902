#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>

namespace shardwright {

/// Of so many rounds in which a property is tried, those to run: all of them. Where
/// SHARDWRIGHT_PROPERTY_EXAMPLES says how many of 100 examples are looked at, that share: `make check` runs
/// the first fifth.
inline int rounds(int all) {
  const char* examples = std::getenv("SHARDWRIGHT_PROPERTY_EXAMPLES");
  return examples == nullptr ? all : std::max(1, all * std::stoi(examples) / 100);
}

}  // namespace shardwright
