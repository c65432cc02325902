#pragma once

#include <vector>

#include "planner/names/tensor_spec.h"
#include "planner/save/export_form.h"
#include "planner/save/shared_blocks.h"
#include "storage/device/device_options.h"

namespace shardwright {

/// The scales of the blocks that these tensors hold only a part of, as that part alone would have them; found
/// where the tensors are. Throws Error(device) naming tensor and call if a device refuses.
std::vector<BlockColumn> scales_of_cut_blocks(const std::vector<TensorSpec>& specs, const ExportForm& form,
                                              const DeviceOptions& options);

}  // namespace shardwright
