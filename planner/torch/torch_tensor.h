#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "planner/names/tensor_spec.h"

namespace shardwright {

/// The dtype of a torch tensor, as safetensors calls it. Throws Error(argument) for one that safetensors does
/// not have.
DType dtype_of(const at::Tensor& tensor);

/// The spec of a tensor that this rank holds whole, of any strides, in CPU memory, on a CUDA device or on the
/// meta device. Owns nothing: the tensor must outlive the spec's use. Throws as dtype_of().
TensorSpec describe(std::string fqn, const at::Tensor& tensor);

/// The spec of a DTensor's local part: `local` is what this rank holds of a tensor of `global_shape` that
/// lies on a mesh of `mesh_shape` by `placements` (one for each mesh dimension), the rank being at
/// `coordinate`. `local` must outlive the spec's use; that its shape is the one that the placements say is
/// checked by whoever plans. Throws as dtype_of().
TensorSpec describe(std::string fqn, const at::Tensor& local, const Shape& global_shape,
                    const Shape& mesh_shape, const Shape& coordinate,
                    const std::vector<Placement>& placements);

/// Tells autograd that the tensors have been written to, as a load does without its knowledge.
void mark_written(const std::vector<at::Tensor>& tensors);

}  // namespace shardwright
