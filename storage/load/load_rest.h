#pragma once

#include <vector>

#include "storage/load/load.h"
#include "storage/load/trace.h"
#include "storage/load/written_parts.h"

namespace shardwright {

/// Does as load() for what is left of a load: with a trace that has begun before, to which it adds, and which
/// it writes, not options.trace; and with an account of what was written before.
LoadReport load_rest(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
                     const LoadOptions& options, Trace& trace, WrittenParts& written);

}  // namespace shardwright
