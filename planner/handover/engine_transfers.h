#pragma once

#include <string>
#include <vector>

#include "planner/handover/engine_tensors.h"

namespace shardwright {

struct Catalog;   // planner/names/catalog.h
struct Transfer;  // planner/load/load_plan.h

/// The parts as Transfers from the tensors of a catalog, which are stored whole, to tensors[destination], in
/// the order of the parts. Elements stay as they are stored: codes are not decoded.
///
/// Throws one Error(mismatch) that tells what does not fit, by name: tensors that are not in the catalog,
/// boxes that are not inside of them, another dtype, elements of the engine's tensors that no part or several
/// write. `what` is what the catalog stands for in the message.
std::vector<Transfer> transfers_into(const std::vector<EngineTensor>& tensors, const Catalog& catalog,
                                     const std::string& what);

}  // namespace shardwright
