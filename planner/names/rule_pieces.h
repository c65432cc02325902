#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/geometry/box.h"
#include "planner/names/axis_expression.h"
#include "planner/names/catalog.h"
#include "planner/names/name_pattern.h"
#include "planner/names/weight_map.h"

namespace shardwright {

struct Correspondence;  // planner/geometry/correspondence.h, like the next
struct Placed;

/// One row of a model's table: HF tensors of this name are that part of native tensors of that name.
struct Rule {
  NamePattern hf;
  NamePattern native;

  /// Where the HF tensor is in the native one; identity: it is the native one.
  AxisExpression axes = {};

  /// The documented rule of names counts these weights as block-scaled. Serves only where there is no
  /// checkpoint: with one, a weight is block-scaled if its scale tensor is there.
  bool quantized = false;

  /// False for the catch-all rows ("all else keeps its name"): such a row finds the source of a trainer's
  /// tensor, but does not make a checkpoint's tensor a known one.
  bool known = true;

  /// Of the rows of one native name, those of the lowest such number count whose HF tensors the checkpoint
  /// has: see choose_alternatives.
  int alternative = 0;

  /// The HF tensor is another native tensor's too, and that one's alone in an export: a tied head.
  bool only_read = false;

  /// The HF tensor holds what a row above has already: an export writes it, a load asks that it be there and
  /// reads it no second time. Whether the values are the same is the caller's to see.
  bool repeats = false;

  /// Elements of the native and of the HF tensor that no row has are zero: a load is given zeros there, an
  /// export leaves them as a new file has them.
  bool rest_is_zero = false;

  /// An HF tensor of one number for each of the first indices of the HF tensor, such as each expert, that the
  /// native tensor holds multiplied in: the product is rounded once. An export writes ones. Patterns of such
  /// names are among the map's `ignored`, as they have no place of their own.
  std::optional<NamePattern> multiplier = {};

  /// A dimension of the native tensor counts experts, of which each HF tensor is one.
  bool stacked() const { return axes.counts_experts(); }
};

/// Whether a row, other than "all else keeps its name", has such a native name.
bool knows_native(const WeightMap& map, std::string_view fqn);

/// Keeps, of the rows of each native name, those of one alternative: in each layer the first one whose HF
/// names all are there, for some expert; where none's are, that of which most are. Layers that have another
/// one than most get rows of their own.
void choose_alternatives(WeightMap& map, const Catalog& catalog);

/// One HF tensor's place inside a native tensor.
struct Piece {
  std::string hf_name;  ///< as the checkpoint spells it
  Shape hf_shape;       ///< that the native shape asks for
  const Rule* rule;     ///< owned by the map
  std::int64_t expert;  ///< -1 where the native tensor is not stacked
  std::int64_t shard;   ///< -1 where HF tensors are not numbered so

  /// Of the rule's first expert; the same for all experts.
  std::shared_ptr<const Correspondence> correspondence;
  Box native_box;  ///< of this expert; takes the place of the correspondence's
  std::string
      multiplier;  ///< HF name of what multiplies it, as the checkpoint spells it; empty: nothing does
  bool as_stored = false;  ///< what the file holds: codes or companions of an encoded weight, not decoded

  /// Whether HF tensor and native tensor are seen in no other shapes than their own.
  bool is_plain() const;
};

/// What a part of the native tensor takes of the HF tensor.
std::vector<Placed> placed_in(const Piece& piece, const Box& native);

/// The smallest box of the native tensor that holds all of the piece.
Box hull_of(const Piece& piece);

/// Along which native dimension each dimension of the HF tensor runs; -1: along no one.
std::vector<int> dimensions_of(const Piece& piece);

/// Whether a box of the native tensor may hold something of the piece: it has something of that hull.
bool may_touch(const Piece& piece, const Box& native);

/// All HF tensors that make up a native tensor of that name and (global) shape, in the order of experts, then
/// rules, then shards. Empty if no rule knows the name. Throws Error(mismatch) if the shape cannot be what
/// the rule says (wrong rank, a dimension that does not divide into its parts). A part of a larger HF tensor
/// needs the shape of that: from the catalog, if it is there, or by the map's sizes.
std::vector<Piece> pieces_of(const WeightMap& map, const std::string& fqn, const Shape& native_shape,
                             const Catalog* catalog = nullptr);

/// The HF names of one expert's share of a native tensor (of all of it, if it is not stacked), in the order
/// of the rules. Expert -1 leaves {expert} in the names. Empty if no rule knows the name.
std::vector<std::string> hf_names_of(const WeightMap& map, const std::string& fqn, std::int64_t expert);

/// The patterns of the HF names that the documented rule counts as block-scaled, in the rules' spelling.
std::vector<std::string> quantized_patterns(const WeightMap& map);

/// The native name that a rule gives an HF name.
struct NameMatch {
  std::string fqn;
  const Rule* rule;
  Captures captures;
  int number;  ///< of the rule, among those of the same native tensor
};

/// The native tensors that an HF tensor, or a part of it, is part of; empty if no rule has it or it has no
/// place in this layout. Scales go where their weights go.
std::vector<NameMatch> native_matches_of(const WeightMap& map, std::string_view hf_name);

/// Where a pipeline has an HF tensor: a layer from 0, before_layers or after_layers.
std::int64_t layer_of(const WeightMap& map, std::string_view hf_name);

/// True if the HF tensor is stored in F32 where its trainer holds it so: rounding it to BF16 would harm.
bool stays_wide(const WeightMap& map, std::string_view hf_name);

/// True if files may lack a source of the native tensor, which is zero then.
bool may_be_absent(const WeightMap& map, std::string_view fqn);

/// True for the HF name of what multiplies another tensor: see Rule::multiplier.
bool is_multiplier(const WeightMap& map, std::string_view hf_name);

/// True if no layout of the family uses this HF tensor, or if it is a multiplier, which is read with what it
/// multiplies: it is passed over.
bool is_ignored(const WeightMap& map, std::string_view hf_name);

/// True if the HF tensor is the model's, but has no place in this layout. Scales go with their weights.
bool is_without_place(const WeightMap& map, std::string_view hf_name);

/// The HF name in the rules' spelling.
std::string to_rules_spelling(const Dialect& dialect, std::string_view hf_name);

/// The inverse of to_rules_spelling(): the name as the checkpoint has it.
std::string to_checkpoint_spelling(const Dialect& dialect, std::string_view rules_name);

/// The shape of the native tensor of that match, which is made up of HF tensors such as this one of that
/// shape. `experts` is the number of experts, if they are stacked; sizes of other parts are those of the
/// catalog's tensors or the map's. Throws Error(mismatch), naming the HF tensor, if it cannot be told.
Shape native_shape_of(const WeightMap& map, const Catalog& catalog, const NameMatch& match,
                      const std::string& hf_name, std::int64_t experts);

}  // namespace shardwright
