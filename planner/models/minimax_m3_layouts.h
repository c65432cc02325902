#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "planner/weight_map.h"

namespace shardwright {

/// A row of a layout's table, its names without the prefixes of the section that it stands in.
struct Row {
  std::string_view hf;
  std::string_view native;
  std::string_view axes = {};  ///< an axis expression; empty: the HF tensor is the native one
};

/// The rows as rules, with these prefixes. A catch-all row is not `known`: see Rule.
void add_rules(std::vector<Rule>& rules, std::span<const Row> rows, std::string_view hf_prefix,
               std::string_view native_prefix, bool known = true);

/// The tables of MiniMax M3's native layouts, one file each: minimax_m3_<layout>.cpp. Each fills in the rules
/// of a map whose dialect is known, and the HF names that have no place in the layout. They speak of names
/// and places only; what is stored block-scaled is the checkpoint's matter, not a layout's.
void add_automodel_rules(WeightMap& map);
void add_transformers_rules(WeightMap& map);
void add_huggingface_rules(WeightMap& map);

}  // namespace shardwright
