#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// A row of a table that another package's knowledge was made into. Names are patterns, or those of one
/// tensor.
struct ImportedRow {
  std::string hf;
  std::string native;
  std::string axes;        ///< an axis expression; empty: the HF tensor is the native one
  bool only_read = false;  ///< see Rule
};

struct ImportedRules {
  std::string family;
  std::string layout;
  std::vector<ImportedRow> rows;
  std::vector<std::string> without_place;  ///< see WeightMap
  std::vector<std::string> strangers;      ///< see WeightMap
  std::vector<std::string> layers;         ///< see WeightMap
  std::vector<std::string> after_layers;   ///< see WeightMap
  Sizes sizes;
};

/// The rules as a weight map. Throws Error(argument), naming the row, if a name is no pattern, the axes are
/// no axis expression, or the one side's name has a variable that nothing on the other side stands for.
WeightMap weight_map_of(const ImportedRules& rules);

/// Of single tensors, by native name, those of which the map does not say what these rows say, all of it and
/// no more: which HF tensors of the catalog make it up, and how. Also those that have an HF tensor which the
/// map takes for others as well. `shapes` are the native tensors'.
std::vector<std::string> said_otherwise(const WeightMap& map, const Catalog& catalog,
                                        const std::vector<ImportedRow>& rows,
                                        const std::map<std::string, Shape>& shapes);

}  // namespace shardwright
