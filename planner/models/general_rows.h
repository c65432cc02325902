#pragma once

#include <string>
#include <vector>

#include "planner/models/imported_rules.h"

namespace shardwright {

/// Rows of patterns that say the same of the tensors named, and of others that differ from them in numbers.
///
/// A number that both names have, the native one that much less or more, is {layer}; one that is the index
/// along the native tensor's first dimension, or so much more, is {expert}. The order is that of the rows
/// given, but numbers that start later come first, as the first row that fits counts.
std::vector<ImportedRow> general_rows(const std::vector<ImportedRow>& rows);

/// Patterns of names: of those that differ in one number, {shard} stands for it.
std::vector<std::string> general_names(const std::vector<std::string>& names);

}  // namespace shardwright
