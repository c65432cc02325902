#pragma once

#include <string>
#include <vector>

#include "storage/write/export.h"

namespace shardwright {

/// All of a request that files depend on, in words. Each rank lays them out by its own, so that they must be
/// asked for the same.
std::vector<std::string> words_of(const ExportRequest& request);

/// Throws Error(mismatch) that names the ranks whose arguments are others. `ranks`: the words of each.
void expect_asked_alike(const std::vector<std::vector<std::string>>& ranks, const ExportRequest& request);

}  // namespace shardwright
