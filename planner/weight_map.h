#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "planner/box.h"
#include "planner/catalog.h"
#include "planner/name_pattern.h"

namespace shardwright {

/// One row of a model's table: HF tensors of this name are that part of native tensors of that name.
struct Rule {
  NamePattern hf;
  NamePattern native;

  /// The native tensor holds the HF matrix transposed.
  bool transposed = false;

  /// The native matrix joins `parts` HF matrices of equal size along `part_dimension` (of the native matrix,
  /// the expert dimension not counted), and this is number `part` of them.
  int part = 0;
  int parts = 1;
  int part_dimension = 0;

  /// The documented rule of names counts these weights as block-scaled. Serves only where there is no
  /// checkpoint: with one, a weight is block-scaled if its scale tensor is there.
  bool quantised = false;

  /// False for the catch-all rows ("all else keeps its name"): such a row finds the source of a trainer's
  /// tensor, but does not make a checkpoint's tensor a known one.
  bool known = true;

  /// If only the HF name has {expert}, dimension 0 of the native tensor counts experts and each HF matrix is
  /// one of them.
  bool stacked() const { return hf.has_expert() && !native.has_expert(); }

  /// True if the row speaks of rows and columns, so that the HF tensor must have both.
  bool is_matrix() const { return transposed || parts > 1; }
};

/// How the names of a checkpoint differ from those the rules use, prefix by prefix: {in the rules, in the
/// files}. The first prefix that fits counts.
using Dialect = std::vector<std::pair<std::string, std::string>>;

/// The rules that relate native tensors to HF tensors for one model family and one native layout.
struct WeightMap {
  std::string family;
  std::string layout;
  std::vector<Rule> rules;                 ///< the first row that fits a name counts
  std::vector<NamePattern> ignored;        ///< HF names that no layout uses
  std::vector<NamePattern> without_place;  ///< HF names of the model that this layout has no tensor for
  std::vector<NamePattern> layers;         ///< HF names of the decoder layers, which have {layer}
  std::vector<NamePattern> after_layers;   ///< HF names that a pipeline needs after its last layer
  Dialect dialect;  ///< of the checkpoint at hand; empty where names are those of the rules
};

/// One HF tensor's place inside a native tensor.
struct Piece {
  std::string hf_name;    ///< as the checkpoint spells it
  Shape hf_shape;         ///< that the native shape asks for
  Box box;                ///< inside the native tensor
  std::vector<int> axes;  ///< HF dimension i runs along native dimension axes[i]
  const Rule* rule;       ///< owned by the map
  std::int64_t expert;    ///< -1 where the native tensor is not stacked
};

/// Where a part of the piece's box (a box of the native tensor) lies in the HF tensor.
Box hf_box_of(const Piece& piece, const Box& native);

/// All HF tensors that make up a native tensor of that name and (global) shape, in the order of experts, then
/// rules. Empty if no rule knows the name. Throws Error(mismatch) if the shape cannot be what the rule says
/// (wrong rank, a dimension that does not divide into its parts).
std::vector<Piece> pieces_of(const WeightMap& map, const std::string& fqn, const Shape& native_shape);

/// The HF names of one expert's share of a native tensor (of all of it, if it is not stacked), in the order
/// of the rules. Empty if no rule knows the name.
std::vector<std::string> hf_names_of(const WeightMap& map, const std::string& fqn, std::int64_t expert);

/// The patterns of the HF names that the documented rule counts as block-scaled, in the rules' spelling.
std::vector<std::string> quantised_patterns(const WeightMap& map);

/// Where an HF tensor belongs.
struct NativePlace {
  std::string fqn;
  const Rule* rule;
  Captures captures;
};

/// The native tensor that an HF tensor is part of; nothing if no rule has it or it has no place in this
/// layout. Scales go where their weights go.
std::optional<NativePlace> native_place_of(const WeightMap& map, std::string_view hf_name);

/// True if no layout of the family uses this HF tensor, so that it is passed over.
bool is_ignored(const WeightMap& map, std::string_view hf_name);

/// True if the HF tensor is the model's, but has no place in this layout. Scales go with their weights.
bool is_without_place(const WeightMap& map, std::string_view hf_name);

/// The HF name in the rules' spelling, and back in the checkpoint's.
std::string to_rules_spelling(const Dialect& dialect, std::string_view hf_name);
std::string to_checkpoint_spelling(const Dialect& dialect, std::string_view rules_name);

/// The native shape that one HF tensor of this shape implies, `experts` being the size of the expert
/// dimension of a stacked tensor.
Shape native_shape_of(const Rule& rule, const Shape& hf_shape, std::int64_t experts);

}  // namespace shardwright
