#pragma once

#include <map>
#include <string>
#include <vector>

#include "planner/load/load_plan.h"

namespace shardwright {

/// Tensors that a cast rounds, by name: "F32 -> BF16", the dtype that they have and the one that they get,
/// which cannot hold every number of the first. Where several dtypes meet: "F32 -> BF16, F64 -> BF16".
using Roundings = std::map<std::string, std::string>;

/// Notes the cast of a tensor if it may lose bits.
void note_cast(Roundings& roundings, const std::string& name, DType from, DType to);

/// What running the plan rounds, by the names of the specs. Decoding is no cast: what a quantized checkpoint
/// was made from, it does not have.
Roundings roundings_of(const LoadPlan& plan, const std::vector<TensorSpec>& specs, const Catalog& catalog);

/// A line for each rounding, for messages; those that differ in one number joined.
std::vector<std::string> lines_of(const Roundings& roundings);

/// Throws Error(mismatch) that tells them, if there are any, after `headline`.
void refuse(const Roundings& roundings, const std::string& headline);

}  // namespace shardwright
