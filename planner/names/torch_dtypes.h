#pragma once

#include <optional>
#include <string_view>

#include "kernels/dtype.h"

namespace shardwright {

/// torch's name of a dtype, such as "bfloat16"; empty for the packed formats, of which torch has no tensors.
std::string_view torch_name_of(DType dtype);

/// The inverse of torch_name_of; nothing for a dtype of torch's that safetensors does not have.
std::optional<DType> dtype_of_torch(std::string_view name);

}  // namespace shardwright
