#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// Whether the name of any tensor begins so.
bool any_begins(const Catalog& catalog, std::string_view prefix);

/// A row of a layout's table, its names without the prefixes of the section that it stands in.
struct Row {
  std::string_view hf;
  std::string_view native;
  std::string_view axes = {};  ///< an axis expression; empty: the HF tensor is the native one
  bool only_read = false;      ///< see Rule
};

/// The rows as rules, with these prefixes. A catch-all row is not `known`: see Rule.
void add_rules(std::vector<Rule>& rules, std::span<const Row> rows, std::string_view hf_prefix,
               std::string_view native_prefix, bool known = true, int alternative = 0);

/// Names that are the same on both sides, but for the prefixes.
void add_rules(std::vector<Rule>& rules, std::span<const std::string_view> names, std::string_view hf_prefix,
               std::string_view native_prefix, bool known = true);

/// How the layouts "automodel" and "transformers" hold gated experts that are HF matrices of their own:
/// "{expert}.gate_proj.weight", "{expert}.up_proj.weight" and "{expert}.down_proj.weight".
std::span<const Row> split_experts(std::string_view layout);

/// The same for experts that the file has stacked: "gate_up_proj" [experts, gates and ups, hidden] and
/// "down_proj" [experts, hidden, intermediate].
std::span<const Row> stacked_experts(std::string_view layout);

}  // namespace shardwright
