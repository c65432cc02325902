#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"

namespace shardwright {

/// Version of the wire form (planner/wire/plan.proto) that this build writes and reads.
inline constexpr unsigned plan_wire_version = 3;

/// A plan as bytes (protobuf, planner/wire/plan.proto). Equal plans over equal tensors give equal bytes.
/// Holds names, shapes and boxes, but no addresses and no file offsets.
std::string encode_plan(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs);

/// The plan that those bytes describe, for this catalog and these specs. Throws Error: malformed for bytes
/// that are cut short, damaged or of another version; mismatch, listing the names, if the checkpoint or the
/// trainer lacks a tensor that the plan speaks of or has it with another dtype or shape, or if the plan does
/// not write every element exactly once.
LoadPlan decode_plan(std::string_view bytes, const Catalog& catalog, const std::vector<TensorSpec>& specs);

/// The transfers of another rank's plan, for what they read: their destinations are not ours and stay
/// unknown. Throws Error: malformed as decode_plan does; mismatch, naming the tensors, if that rank's
/// checkpoint is not this one.
std::vector<Transfer> decode_transfers(std::string_view bytes, const Catalog& catalog);

}  // namespace shardwright
