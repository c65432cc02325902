#pragma once

#include <map>
#include <string>
#include <vector>

#include "planner/models/imported_rules.h"
#include "planner/names/catalog.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// What another package makes of the tensors of one checkpoint.
struct ImportedConversion {
  std::string family;
  std::string layout;
  std::vector<ImportedRow> rows;          ///< of single tensors
  std::map<std::string, Shape> shapes;    ///< of the native tensors
  Sizes sizes;                            ///< that the axes of the rows name
  std::vector<std::string> ignored;       ///< HF names that the model leaves out knowingly
  std::vector<std::string> unknown;       ///< other HF names that have no place in the model
  std::string layers;                     ///< how the native names of the decoder's layers begin; empty: none
  std::vector<std::string> after_layers;  ///< how those begin that come after the last layer
};

/// The rows as patterns, as far as the patterns say just what the rows do of the catalog's tensors; the rest
/// as rows of single tensors. Throws Error(mismatch), naming a tensor, where even these say something else;
/// Error(argument) as weight_map_of().
WeightMap general_map(const ImportedConversion& conversion, const Catalog& catalog);

}  // namespace shardwright
