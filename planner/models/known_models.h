#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "planner/models/models.h"
#include "planner/names/catalog.h"
#include "planner/names/weight_map.h"

namespace shardwright {

struct Sample;  // of samples.h

/// A model family that Shardwright knows. Adding one is a file of rules in families/ and a test: the build
/// calls the function that the file is named after, which returns the families of the file.
struct Model {
  std::string_view family;                    ///< as users spell it in model="..."
  std::vector<std::string_view> model_types;  ///< values of config.json's "model_type" that mean this family
  std::vector<std::string_view> layouts;  ///< native layouts with tables, as users spell them in layout="..."

  /// Whether nemo-automodel trains it with transformers' own model: in layout "automodel", too, names and
  /// shapes are those of transformers.
  bool trained_as_transformers = false;

  /// Layouts that trainers have and rules cannot say yet, with the reason.
  std::vector<std::pair<std::string_view, std::string_view>> refused = {};

  /// HF names that only this family has: parts of them, or patterns of whole ones. Asked where config.json is
  /// missing.
  std::vector<std::string_view> hf_marks = {};

  /// Patterns of native names, of any layout, that only this family has. Asked where there is no checkpoint.
  std::vector<std::string_view> native_marks = {};

  /// Names of numbers in config.json that the tables' axes speak of.
  std::vector<std::string_view> sizes = {};

  /// What the names of the text part begin with, which a text-only checkpoint leaves out; empty: nothing.
  std::string_view text_prefix = {};

  /// What HF names of the text part may begin with, where no checkpoint says it; each gives a table.
  std::vector<std::string_view> text_names = {"model."};

  /// Whose names modules have in nemo-automodel's own files of LoRA: a layout.
  std::string_view lora_modules = "huggingface";

  /// Whether an export without a template keeps in F32 what trainers hold so on purpose: biases of routers,
  /// the decay of linear attention and of Mamba.
  bool keeps_f32 = true;

  /// The table for one of `layouts`, in the dialect of this checkpoint.
  WeightMap (*weight_map)(std::string_view layout, const Catalog& catalog) = nullptr;

  /// The forms in which it is released, for the generator; the first is what is meant where none is named.
  std::vector<Sample> (*samples)() = nullptr;
};

/// All families that this build knows.
const std::vector<Model>& models();

/// The table where there is no checkpoint, but a trainer with tensors of these names: that of the family for
/// files whose text part begins so that most of the names are the table's. Throws as weight_map_for.
WeightMap weight_map_for_natives(const std::vector<std::string>& names, std::string_view family,
                                 std::string_view layout);

/// Whether weight_map_for has a table: the family that is named, or that the checkpoint is of, has this
/// layout.
bool has_table(const Catalog& catalog, std::string_view family, std::string_view layout);

/// The table where there is no checkpoint, for a state dict of these native names: that of the one family
/// whose marks they have. No marks: names as they are, if no family's table says that one of these tensors is
/// made up of others. Throws Error(mismatch), naming the families, where several fit or only that can be
/// said.
/// With `asks`, for LoRA tensors, that no family has such marks is an error, too.
WeightMap weight_map_by_native_names(const std::vector<std::string>& names, std::string_view layout,
                                     bool asks = false);

/// Throws Error(mismatch), naming the layout, if one of these names is another layout's of the map's family
/// and not this one's; if the map has no family, if such a tensor is made up of others in a layout of any.
void expect_no_other_layout(const WeightMap& map, const std::vector<std::string>& names);

/// The name of the family that is called so, or has such a model_type. Throws Error(argument) as
/// weight_map_for.
std::string family_named(std::string_view model);

}  // namespace shardwright
