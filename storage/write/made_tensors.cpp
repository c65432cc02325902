#include "storage/write/made_tensors.h"

#include <cstring>

#include "kernels/encode.h"
#include "storage/boxes/placing.h"

namespace shardwright {

std::vector<std::byte> bytes_of_made(const Made& made, const ExportLayout& layout,
                                     const KnownNumbers& numbers) {
  const SourceTensor& stored = layout.catalog.tensors[made.tensor];
  std::vector<std::byte> bytes(stored.end - stored.begin);
  if (made.how.kind == MadeTensor::Kind::shape) {
    const Shape& shape = layout.catalog.find(made.how.weight).front().shape;
    std::memcpy(bytes.data(), shape.data(), bytes.size());
    return bytes;
  }
  float number = 1;
  if (made.how.kind == MadeTensor::Kind::global_scale) {
    number =
        global_scale(layout.quantize->rule, made.how.values, numbers.largest(made.how.weight).value_or(0));
  }
  copy_box({{volume(stored.shape), 0, 1}}, DType::F32, stored.dtype,
           reinterpret_cast<const std::byte*>(&number), bytes.data());
  return bytes;
}

}  // namespace shardwright
