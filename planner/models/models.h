#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/names/catalog.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// A model family that Shardwright knows. Adding one is a file of rules in this folder, a line in models.cpp
/// and a test.
struct Model {
  std::string_view family;                    ///< as users spell it in model="..."
  std::vector<std::string_view> model_types;  ///< values of config.json's "model_type" that mean this family
  std::vector<std::string_view> layouts;  ///< native layouts with tables, as users spell them in layout="..."

  /// HF names that only this family has: parts of them, or patterns of whole ones. Asked where config.json is
  /// missing.
  std::vector<std::string_view> hf_marks;

  /// Patterns of native names, of any layout, that only this family has. Asked where there is no checkpoint.
  std::vector<std::string_view> native_marks;

  /// Names of numbers in config.json that the tables' axes speak of.
  std::vector<std::string_view> sizes;

  /// What the names of the text part begin with, which a text-only checkpoint leaves out; empty: nothing.
  std::string_view text_prefix;

  /// The table for one of `layouts`, in the dialect of this checkpoint.
  WeightMap (*weight_map)(std::string_view layout, const Catalog& catalog);
};

const std::vector<Model>& models();

/// The table for a checkpoint. `family` "auto" means: by config.json's model_type, or by the names where
/// there is no config.json. Throws Error(argument) for an unknown family or layout and Error(mismatch) for a
/// model that no family, or more than one, recognises, naming what there is. The layout "huggingface", the
/// checkpoint's own names and shapes, needs no family: "auto" never fails there.
WeightMap weight_map_for(const Catalog& catalog, std::string_view family = "auto",
                         std::string_view layout = "automodel");

/// Whether weight_map_for has a table: the family that is named, or that the checkpoint is of, has this
/// layout.
bool has_table(const Catalog& catalog, std::string_view family, std::string_view layout);

/// The table where there is no checkpoint, for a state dict of these native names: that of the one family
/// whose marks they have. No marks: names as they are, if no family's table says that one of these tensors is
/// made up of others. Throws Error(mismatch), naming the families, where several fit or only that can be
/// said.
/// With `asks`, that no family has such marks is an error, too.
WeightMap weight_map_by_native_names(const std::vector<std::string>& names, std::string_view layout,
                                     bool asks = false);

/// Throws Error(mismatch), naming the layout, if one of these tensors is made up of others in another layout
/// of the map's family (of any, if the map has none), and in this one is not.
void expect_no_other_layout(const WeightMap& map, const std::vector<std::string>& names);

/// The name of the family that is called so, or has such a model_type. Throws Error(argument) as
/// weight_map_for.
std::string family_named(std::string_view model);

/// Each in a file of its name.
Model minimax_m3();
Model qwen3_5_moe();
Model qwen3_moe();

}  // namespace shardwright
