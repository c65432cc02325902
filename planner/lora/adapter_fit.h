#pragma once

#include <optional>
#include <string>
#include <vector>

#include "planner/lora/lora_places.h"
#include "planner/names/catalog.h"

namespace shardwright {

/// The senses of ParamWrappers: modern is peft's since 0.19.1, legacy that of earlier releases.
enum class WrapperSense { modern, legacy };

/// "modern" or "legacy".
std::string_view name_of(WrapperSense sense);

/// The inverse; nothing for any other text.
std::optional<WrapperSense> wrapper_sense_named(std::string_view name);

/// What an adapter is expected to be.
struct AdapterRequest {
  std::string model = "auto";           ///< the family; "auto": any of which the file has names
  std::optional<WrapperSense> sense;    ///< nothing: as the shapes say, and where these fit both, `written`
  std::optional<WrapperSense> written;  ///< the sense of the version that adapter_config.json is of
  std::vector<std::string> target_parameters;                      ///< of adapter_config.json
  std::vector<std::string> prefixes = {std::string(peft_prefix)};  ///< that modules' names may have
  std::string path;                                                ///< of the file, for messages
  std::string name;                                                ///< of the file, for messages
};

/// Where an adapter has a pair.
struct FittedPair {
  LoraPair pair;
  LoraPlace place;
  LoraFit fit;

  /// The module or parameter that has the pair, named as in the model: one of them, where there are several.
  std::string module() const;

  /// Whether the pair has an A for several of the file's modules, which then all have to have that one.
  bool shares_a() const { return place.parts > 1 && !place.is_parameter() && !fit.spread; }

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
