#pragma once

#include <optional>
#include <string>
#include <vector>

#include "planner/lora/adapter_fit.h"

namespace shardwright {

/// How an adapter is stored.
struct AdapterForm {
  WeightMap map;
  std::string config;  ///< the text of adapter_config.json
};

/// The form of an adapter of these tensors. Modules of the file that several of the trainer's pairs make up
/// get a pair of the sum of their ranks, B block-diagonal, and as many times the alpha. Throws one
/// Error(mismatch) that tells what does not make an adapter of that kind, Error(argument) for an unknown
/// model or layout.
AdapterForm adapter_form(const std::vector<NativeTensor>& tensors, const AdapterAsked& asked);

}  // namespace shardwright
