#pragma once

#include <optional>
#include <string>
#include <vector>

#include "planner/lora/adapter.h"
#include "planner/lora/lora_places.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// "modern" or "legacy".
std::string_view name_of(WrapperSense sense);

/// The inverse; nothing for any other text.
std::optional<WrapperSense> wrapper_sense_named(std::string_view name);

/// Where an adapter has a pair.
struct FittedPair {
  LoraPair pair;
  LoraPlace place;
  LoraFit fit;

  /// The module or parameter that has the pair, named as in the model: one of them, where there are several.
  std::string module() const;

  /// Whether the pair has an A for several of the file's modules, which then all have to have that one.
  bool shares_a() const { return modules().size() > 1 && !fit.spread; }

  /// The file's modules that have the pair: ParamWrappers, or modules with {expert}.
  const std::vector<std::string>& modules() const {
    return place.is_parameter() ? fit.wrappers : place.modules;
  }

  /// Whether B has blocks on its diagonal alone: in the trainer's memory, or in the file.
  bool has_zeros() const { return fit.spread && place.parts > 1; }
  bool file_has_zeros() const { return fit.spread && place.of > 1; }
};

/// The rules by which an adapter is read.
struct AdapterFit {
  WeightMap map;
  std::vector<FittedPair> pairs;
  std::string layout;                 ///< of the model that the file is for; empty: of none
  std::optional<WrapperSense> sense;  ///< of the file's ParamWrappers; nothing: it has none

  /// What does not fit, beside what plan_load finds by the rules.
  std::vector<std::string> problems;
};

/// Finds where an adapter has each pair. Throws Error(argument) for an unknown model.
AdapterFit fit_adapter(const std::vector<LoraPair>& pairs, const Catalog& catalog,
                       const AdapterRequest& request);

}  // namespace shardwright
