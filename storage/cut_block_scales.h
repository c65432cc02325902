#pragma once

#include <vector>

#include "planner/export_form.h"
#include "planner/shared_blocks.h"
#include "planner/tensor_spec.h"
#include "storage/device_options.h"

namespace shardwright {

/// The scales of the blocks that these tensors hold only a part of, as that part alone would have them; found
/// where the tensors are. Throws Error(device) naming tensor and call if a device refuses.
std::vector<BlockColumn> scales_of_cut_blocks(const std::vector<TensorSpec>& specs, const ExportForm& form,
                                              const DeviceOptions& options);

}  // namespace shardwright
