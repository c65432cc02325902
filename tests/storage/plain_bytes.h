#pragma once

#include <string>

#include "storage/boxes/gather.h"

namespace shardwright {

/// The row-major bytes of a tensor, one element after the other.
inline std::string plain_bytes(const TensorInMemory& tensor) {
  std::string bytes;
  for (std::int64_t i = 0; i < volume(tensor.shape); ++i) {
    std::int64_t rest = i;
    std::int64_t element = 0;
    for (std::size_t d = tensor.shape.size(); d-- > 0;) {
      element += rest % tensor.shape[d] * tensor.strides[d];
      rest /= tensor.shape[d];
    }
    const auto size = static_cast<std::int64_t>(tensor.element_bytes);
    bytes.append(reinterpret_cast<const char*>(tensor.data + element * size), tensor.element_bytes);
  }
  return bytes;
}

}  // namespace shardwright
