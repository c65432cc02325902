#include "planner/models/imported_rules.h"

#include <algorithm>
#include <optional>
#include <set>
#include <stdexcept>
#include <tuple>

#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/resolved_axes.h"
#include "planner/names/rule_pieces.h"

namespace shardwright {
namespace {

bool has(const std::string& pattern, std::string_view variable) {
  return pattern.find(variable) != std::string::npos;
}

/// What is wrong with a row; empty: nothing.
std::string fault_of(const ImportedRow& row, const Rule& rule) {
  const auto one_sided = [&](std::string_view variable, bool is_counted) {
    if (is_counted) return !has(row.hf, variable) || has(row.native, variable);
    return has(row.hf, variable) != has(row.native, variable);
  };
  if (one_sided("{expert", rule.axes.counts_experts())) return "{expert}";
  if (one_sided("{shard", rule.axes.counts_shards())) return "{shard}";
  if (one_sided("{layer", false)) return "{layer}";
  if (one_sided("{*}", false)) return "{*}";
  return "";
}

Rule rule_of(const ImportedRow& row) {
  const std::string where = "the row " + row.hf + " -> " + row.native + " (" + row.axes + "): ";
  try {
    Rule rule{NamePattern(row.hf), NamePattern(row.native)};
    if (!row.axes.empty()) rule.axes = AxisExpression(row.axes);
    rule.only_read = row.only_read;
    if (const std::string fault = fault_of(row, rule); !fault.empty())
      throw Error(ErrorKind::argument, where + "expected " + fault + " of the one name in the other, or " +
                                           "among the native axes");
    return rule;
  } catch (const std::invalid_argument& error) {
    throw Error(ErrorKind::argument, where + error.what());
  }
}

std::vector<NamePattern> patterns_of(const std::vector<std::string>& texts) {
  std::vector<NamePattern> patterns;
  for (const std::string& text : texts) {
    try {
      patterns.emplace_back(text);
    } catch (const std::invalid_argument& error) {
      throw Error(ErrorKind::argument, error.what());
    }
  }
  return patterns;
}

/// One HF tensor's box in a native tensor, as a row claims it.
using Claim = std::tuple<std::string, View, Box, View, Box, std::vector<int>, bool>;

Claim claim_of(const std::string& hf_name, const Correspondence& of, const Box& native_box, bool only_read) {
  return {hf_name, of.hf_view, of.hf_box, of.native_view, native_box, of.axes, only_read};
}

bool is_less(const Claim& a, const Claim& b) {
  const auto key = [](const Claim& claim) {
    return std::tie(std::get<0>(claim), std::get<2>(claim).offset, std::get<4>(claim).offset);
  };
  return key(a) < key(b);
}

/// What the rows of one native tensor say.
std::vector<Claim> claims_by_rows(const std::vector<const ImportedRow*>& rows, const WeightMap& map,
                                  const Catalog& catalog, const Shape& shape) {
  std::vector<Claim> claims;
  for (const ImportedRow* row : rows) {
    const AxisExpression axes = row->axes.empty() ? AxisExpression() : AxisExpression(row->axes);
    const AxisExpression::Resolved resolved = axes.resolve(catalog.shape_of(row->hf), shape, map.sizes);
    claims.push_back(
        claim_of(row->hf, resolved.correspondence, resolved.correspondence.native_box, row->only_read));
  }
  return claims;
}

std::vector<Claim> claims_by_map(const WeightMap& map, const Catalog& catalog, const std::string& fqn,
                                 const Shape& shape) {
  std::vector<Claim> claims;
  for (const Piece& piece : pieces_of(map, fqn, shape, &catalog))
    claims.push_back(claim_of(piece.hf_name, *piece.correspondence, piece.native_box, piece.rule->only_read));
  return claims;
}

bool is_said(const WeightMap& map, const Catalog& catalog, const std::string& fqn,
             const std::vector<const ImportedRow*>& rows, const Shape& shape) {
  try {
    std::vector<Claim> expected = claims_by_rows(rows, map, catalog, shape);
    std::vector<Claim> found = claims_by_map(map, catalog, fqn, shape);
    std::sort(expected.begin(), expected.end(), is_less);
    std::sort(found.begin(), found.end(), is_less);
    return expected == found;
  } catch (const Error&) {  // the shapes do not fit what the map says
    return false;
  }
}

}  // namespace

WeightMap weight_map_of(const ImportedRules& rules) {
  WeightMap map;
  map.family = rules.family;
  map.layout = rules.layout;
  map.sizes = rules.sizes;
  map.rules.reserve(rules.rows.size());
  for (const ImportedRow& row : rules.rows) map.rules.push_back(rule_of(row));
  map.without_place = patterns_of(rules.without_place);
  map.strangers = patterns_of(rules.strangers);
  map.layers = patterns_of(rules.layers);
  map.after_layers = patterns_of(rules.after_layers);
  return map;
}

std::vector<std::string> said_otherwise(const WeightMap& map, const Catalog& catalog,
                                        const std::vector<ImportedRow>& rows,
                                        const std::map<std::string, Shape>& shapes) {
  std::map<std::string, std::vector<const ImportedRow*>> of_native;
  std::map<std::string, std::set<std::string>> natives_of;
  for (const ImportedRow& row : rows) {
    of_native[row.native].push_back(&row);
    natives_of[row.hf].insert(row.native);
  }
  std::set<std::string> otherwise;
  for (const auto& [fqn, of] : of_native) {
    const auto shape = shapes.find(fqn);
    if (shape == shapes.end() || !is_said(map, catalog, fqn, of, shape->second)) otherwise.insert(fqn);
  }
  for (const auto& [hf_name, expected] : natives_of) {
    std::set<std::string> found;
    for (const NameMatch& match : native_matches_of(map, hf_name)) found.insert(match.fqn);
    if (found != expected) otherwise.insert(expected.begin(), expected.end());
  }
  return {otherwise.begin(), otherwise.end()};
}

}  // namespace shardwright
