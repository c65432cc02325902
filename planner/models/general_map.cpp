#include "planner/models/general_map.h"

#include <algorithm>
#include <set>
#include <utility>

#include "planner/error.h"
#include "planner/models/general_rows.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {
namespace {

using Names = std::set<std::string>;

/// These native tensors, all that have an HF tensor in common with them, and so on.
Names with_neighbours(Names natives, const std::vector<ImportedRow>& rows) {
  for (;;) {
    Names sources;
    for (const ImportedRow& row : rows) {
      if (natives.contains(row.native)) sources.insert(row.hf);
    }
    const std::size_t before = natives.size();
    for (const ImportedRow& row : rows) {
      if (sources.contains(row.hf)) natives.insert(row.native);
    }
    if (natives.size() == before) return natives;
  }
}

/// Rows of these native tensors as they are, before patterns of all others: the first that fits counts.
std::vector<ImportedRow> general_but(const Names& single, const std::vector<ImportedRow>& rows) {
  std::vector<ImportedRow> found;
  std::vector<ImportedRow> others;
  for (const ImportedRow& row : rows) (single.contains(row.native) ? found : others).push_back(row);
  const std::vector<ImportedRow> general = general_rows(others);
  found.insert(found.end(), general.begin(), general.end());
  return found;
}

/// Whether a name that nobody knows counts as one that has no place.
bool takes_unknown(const WeightMap& map, const std::vector<std::string>& unknown) {
  return std::any_of(map.without_place.begin(), map.without_place.end(), [&](const NamePattern& pattern) {
    return std::any_of(unknown.begin(), unknown.end(),
                       [&](const std::string& name) { return pattern.match(name).has_value(); });
  });
}

/// Rows of the `single` tensors as they are, and, if `names_are_general` is false, all names without rows.
ImportedRules rules_of(const ImportedConversion& conversion, const Names& single, bool names_are_general) {
  ImportedRules rules;
  rules.family = conversion.family;
  rules.layout = conversion.layout;
  rules.rows = general_but(single, conversion.rows);
  rules.without_place = names_are_general ? general_names(conversion.ignored) : conversion.ignored;
  rules.strangers = names_are_general ? general_names(conversion.unknown) : conversion.unknown;
  rules.sizes = conversion.sizes;
  const auto is_after = [&](const ImportedRow& row) {
    return std::any_of(conversion.after_layers.begin(), conversion.after_layers.end(),
                       [&](const std::string& start) { return row.native.starts_with(start); });
  };
  for (const ImportedRow& row : rules.rows) {
    if (!conversion.layers.empty() && row.native.starts_with(conversion.layers + "{layer}"))
      rules.layers.push_back(row.hf);
    if (is_after(row)) rules.after_layers.push_back(row.hf);
  }
  return rules;
}

}  // namespace

WeightMap general_map(const ImportedConversion& conversion, const Catalog& catalog) {
  Names single;
  bool names_are_general = true;
  for (;;) {
    WeightMap map = weight_map_of(rules_of(conversion, single, names_are_general));
    if (names_are_general && takes_unknown(map, conversion.unknown)) {
      names_are_general = false;
      continue;
    }
    const std::vector<std::string> otherwise =
        said_otherwise(map, catalog, conversion.rows, conversion.shapes);
    if (otherwise.empty()) return map;
    Names wider = single;
    wider.insert(otherwise.begin(), otherwise.end());
    wider = with_neighbours(std::move(wider), conversion.rows);
    if (wider.size() == single.size()) {
      throw Error(ErrorKind::mismatch,
                  otherwise.front() +
                      ": the rules made of transformers' mapping do not say of it what the mapping does; "
                      "this is a fault of Shardwright's importer, please report it");
    }
    single = std::move(wider);
    names_are_general = false;
  }
}

}  // namespace shardwright
