#include "planner/weight_map.h"

#include <algorithm>

#include "planner/block_scales.h"
#include "planner/error.h"

namespace shardwright {
namespace {

std::string replace_prefix(std::string_view name, std::string_view from, std::string_view to) {
  return std::string(to) + std::string(name.substr(from.size()));
}

bool fits_any(const std::vector<NamePattern>& patterns, std::string_view name) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const NamePattern& pattern) { return pattern.match(name).has_value(); });
}

/// HF dimension i runs along native dimension result[i].
std::vector<int> axes_of(const Rule& rule, std::size_t native_rank) {
  const int first = rule.stacked() ? 1 : 0;
  std::vector<int> axes;
  for (int d = first; d < static_cast<int>(native_rank); ++d) axes.push_back(d);
  if (rule.transposed) std::reverse(axes.begin(), axes.end());
  return axes;
}

void check_shape(const Rule& rule, const std::string& fqn, const Shape& shape) {
  const std::size_t matrix = 2U + (rule.stacked() ? 1U : 0U);
  const auto fail = [&](const std::string& expected) {
    throw Error(ErrorKind::mismatch, fqn + ": expected " + expected + ", found shape " + to_string(shape));
  };
  if (rule.is_matrix() && shape.size() != matrix)
    fail("a tensor of " + std::to_string(matrix) + " dimensions");
  if (rule.stacked() && shape.empty()) fail("experts along dimension 0");
  if (rule.parts > 1) {
    const std::size_t joined = static_cast<std::size_t>(rule.part_dimension) + (rule.stacked() ? 1U : 0U);
    if (shape[joined] % rule.parts != 0) {
      fail("a multiple of " + std::to_string(rule.parts) + " along dimension " + std::to_string(joined));
    }
  }
}

Piece piece_of(const Dialect& dialect, const Rule& rule, const Captures& captures,
               const Shape& native_shape) {
  Piece piece;
  piece.hf_name = to_checkpoint_spelling(dialect, rule.hf.fill(captures));
  piece.rule = &rule;
  piece.expert = rule.stacked() ? captures.expert : -1;
  piece.axes = axes_of(rule, native_shape.size());
  piece.box = whole(native_shape);
  if (rule.stacked()) {
    piece.box.offset[0] = captures.expert;
    piece.box.size[0] = 1;
  }
  if (rule.parts > 1) {
    const std::size_t joined = static_cast<std::size_t>(rule.part_dimension) + (rule.stacked() ? 1U : 0U);
    piece.box.size[joined] /= rule.parts;
    piece.box.offset[joined] = rule.part * piece.box.size[joined];
  }
  for (int axis : piece.axes) piece.hf_shape.push_back(piece.box.size[static_cast<std::size_t>(axis)]);
  return piece;
}

/// The first row that has an HF tensor of this name, in the rules' spelling; null if there is none.
const Rule* rule_of_hf(const WeightMap& map, std::string_view name) {
  const auto rule = std::find_if(map.rules.begin(), map.rules.end(),
                                 [&](const Rule& candidate) { return candidate.hf.match(name).has_value(); });
  return rule == map.rules.end() ? nullptr : &*rule;
}

/// The rows that share the first fitting row's native pattern: w1 and w3 both go into gate_and_up_projs.
std::vector<const Rule*> rules_of(const WeightMap& map, const std::string& fqn, Captures& captures) {
  std::vector<const Rule*> rules;
  for (const Rule& rule : map.rules) {
    if (rules.empty()) {
      if (std::optional<Captures> found = rule.native.match(fqn)) {
        captures = *found;
        rules.push_back(&rule);
      }
    } else if (rule.native.text() == rules.front()->native.text()) {
      rules.push_back(&rule);
    }
  }
  return rules;
}

}  // namespace

Box hf_box_of(const Piece& piece, const Box& native) {
  Box box{Shape(piece.axes.size()), Shape(piece.axes.size())};
  for (std::size_t i = 0; i < piece.axes.size(); ++i) {
    const auto axis = static_cast<std::size_t>(piece.axes[i]);
    box.offset[i] = native.offset[axis] - piece.box.offset[axis];
    box.size[i] = native.size[axis];
  }
  return box;
}

std::vector<Piece> pieces_of(const WeightMap& map, const std::string& fqn, const Shape& native_shape) {
  Captures captures;
  const std::vector<const Rule*> rules = rules_of(map, fqn, captures);
  std::vector<Piece> pieces;
  if (rules.empty()) return pieces;
  // "All else keeps its name" is no second way to a tensor that a row above gives another name.
  if (!rules.front()->known) {
    const Rule& first = *rule_of_hf(map, rules.front()->hf.fill(captures));
    if (first.hf.text() != rules.front()->hf.text()) return pieces;
  }
  for (const Rule* rule : rules) check_shape(*rule, fqn, native_shape);
  const bool stacked = rules.front()->stacked();
  const std::int64_t experts = stacked ? native_shape[0] : 1;
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    if (stacked) captures.expert = expert;
    for (const Rule* rule : rules) pieces.push_back(piece_of(map.dialect, *rule, captures, native_shape));
  }
  return pieces;
}

std::vector<std::string> hf_names_of(const WeightMap& map, const std::string& fqn, std::int64_t expert) {
  Captures captures;
  std::vector<std::string> names;
  for (const Rule* rule : rules_of(map, fqn, captures)) {
    if (rule->stacked()) captures.expert = expert;
    names.push_back(to_checkpoint_spelling(map.dialect, rule->hf.fill(captures)));
  }
  return names;
}

std::vector<std::string> quantised_patterns(const WeightMap& map) {
  std::vector<std::string> patterns;
  for (const Rule& rule : map.rules) {
    if (rule.quantised) patterns.push_back(rule.hf.text());
  }
  return patterns;
}

std::optional<NativePlace> native_place_of(const WeightMap& map, std::string_view hf_name) {
  const std::string name = to_rules_spelling(map.dialect, weight_name_of(hf_name));
  if (fits_any(map.without_place, name)) return std::nullopt;
  const Rule* rule = rule_of_hf(map, name);
  if (rule == nullptr) return std::nullopt;
  const Captures captures = *rule->hf.match(name);
  return NativePlace{rule->native.fill(captures), rule, captures};
}

bool is_ignored(const WeightMap& map, std::string_view hf_name) {
  return fits_any(map.ignored, to_rules_spelling(map.dialect, hf_name));
}

bool is_without_place(const WeightMap& map, std::string_view hf_name) {
  return fits_any(map.without_place, to_rules_spelling(map.dialect, weight_name_of(hf_name)));
}

std::string to_rules_spelling(const Dialect& dialect, std::string_view hf_name) {
  for (const auto& [in_rules, in_files] : dialect) {
    if (hf_name.starts_with(in_files)) return replace_prefix(hf_name, in_files, in_rules);
  }
  return std::string(hf_name);
}

std::string to_checkpoint_spelling(const Dialect& dialect, std::string_view rules_name) {
  for (const auto& [in_rules, in_files] : dialect) {
    if (rules_name.starts_with(in_rules)) return replace_prefix(rules_name, in_rules, in_files);
  }
  return std::string(rules_name);
}

Shape native_shape_of(const Rule& rule, const Shape& hf_shape, std::int64_t experts) {
  Shape shape = hf_shape;
  if (rule.transposed) std::reverse(shape.begin(), shape.end());
  if (rule.parts > 1) shape[static_cast<std::size_t>(rule.part_dimension)] *= rule.parts;
  if (rule.stacked()) shape.insert(shape.begin(), experts);
  return shape;
}

}  // namespace shardwright
