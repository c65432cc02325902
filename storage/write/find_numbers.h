#pragma once

#include <functional>
#include <string>
#include <vector>

#include "kernels/encode.h"
#include "planner/names/tensor_spec.h"
#include "planner/save/export_form.h"
#include "planner/save/weight_numbers.h"
#include "storage/device/device_gatherer.h"
#include "storage/device/device_options.h"
#include "storage/write/export_tasks.h"

namespace shardwright {

/// What this rank has to tell others of the weights that it holds parts of. Values on devices are brought to
/// CPU memory in bounded pieces. Throws Error(device) naming tensor and call if a device refuses.
std::vector<WeightNumbers> find_numbers(const std::vector<TensorSpec>& specs, const ExportForm& form,
                                        const DeviceOptions& options);

/// Adds what the parts need of blocks and bytes that they cut, and that `specs`, of which they are parts,
/// hold whole: nobody was told of these.
void complete_numbers(const std::vector<TensorSpec>& specs, const std::vector<TensorSpec>& parts,
                      const ExportForm& form, const DeviceOptions& options, KnownNumbers& known);

/// Calls visit(index of the dimensions before the last two, tile) for each matrix of a box of values.
void for_each_matrix(const StridedMemory& values, DType dtype, const Box& box,
                     const std::function<void(const Shape& index, const ValueTile& tile)>& visit);

/// Adds a part to the gatherer that is a box of values of a device's tensor as they are, row behind row.
void gather_values(DeviceGatherer& gatherer, const StridedMemory& values, DType dtype, const Box& box,
                   const std::string& name, const DeviceGatherer::Receive& receive);

/// The place of a matrix's first row and column in the blocks.
BlockGrid grid_at(const Encoding& encoding, const Box& box);

}  // namespace shardwright
