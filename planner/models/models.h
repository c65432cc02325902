#pragma once

#include <string_view>

#include "planner/names/catalog.h"
#include "planner/names/weight_map.h"

namespace shardwright {

/// The table for a checkpoint. `family` "auto" means: by config.json's model_type, or by the names where
/// there is no config.json. Throws Error(argument) for an unknown family or layout and Error(mismatch) for a
/// model that no family, or more than one, recognises, naming what there is. The layout "huggingface", the
/// checkpoint's own names and shapes, needs no family: "auto" never fails there.
WeightMap weight_map_for(const Catalog& catalog, std::string_view family = "auto",
                         std::string_view layout = "automodel");

}  // namespace shardwright
