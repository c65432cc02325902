#pragma once

#include <filesystem>

#include "planner/load/load_plan.h"
#include "storage/write/export_share.h"

namespace shardwright {

/// Runs a plan, whose sources are the tensors of the layout and whose destinations are the parts, from right
/// to left, and fills in what the report says of writing. Errors as run_export().
void write_parts(const PartsToWrite& parts, const ExportLayout& layout, const LoadPlan& plan,
                 const std::filesystem::path& directory, const ExportWriting& options, ExportReport& report);

}  // namespace shardwright
