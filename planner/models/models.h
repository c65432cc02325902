#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/catalog.h"
#include "planner/weight_map.h"

namespace shardwright {

/// A model family that Shardwright knows. Adding one is a file of rules in this folder, a line in models.cpp
/// and a test.
struct Model {
  std::string_view family;                    ///< as users spell it in model="..."
  std::vector<std::string_view> model_types;  ///< values of config.json's "model_type" that mean this family
  std::vector<std::string_view> layouts;      ///< native layouts, as users spell them in layout="..."

  /// True if these tensor names can only be this family's. Asked where config.json is missing.
  bool (*has_names_of)(const Catalog& catalog);

  /// The table for one of `layouts`, in the dialect of this checkpoint.
  WeightMap (*weight_map)(std::string_view layout, const Catalog& catalog);
};

const std::vector<Model>& models();

/// The table for a checkpoint. `family` "auto" means: by config.json's model_type, or by the names where
/// there is no config.json. Throws Error(argument) for an unknown family or layout and Error(mismatch) for a
/// model that no family recognises, naming what there is.
WeightMap weight_map_for(const Catalog& catalog, std::string_view family = "auto",
                         std::string_view layout = "automodel");

/// MiniMax M3 (text and VL); see minimax_m3.cpp.
Model minimax_m3();

}  // namespace shardwright
