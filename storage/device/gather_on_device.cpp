#include "storage/device/gather_on_device.h"

#include <algorithm>

#include "storage/boxes/placing.h"

namespace shardwright {
namespace {

/// What kernels move elements of so many bytes as.
DType moved_as(std::uint64_t bytes) {
  switch (bytes) {
    case 1:
      return DType::U8;
    case 2:
      return DType::U16;
    case 4:
      return DType::U32;
    default:
      return DType::U64;
  }
}

}  // namespace

void gather(const TensorInMemory& tensor, std::uint64_t begin, std::uint64_t count,
            DeviceGatherer& gatherer) {
  if (is_contiguous(tensor)) return gatherer.copy(tensor.data + begin, count);
  const DType dtype = moved_as(tensor.element_bytes);
  const auto units = static_cast<std::int64_t>(tensor.element_bytes) / bytes_of(dtype);
  const auto element_bytes = static_cast<std::int64_t>(tensor.element_bytes);
  const std::int64_t most = static_cast<std::int64_t>(gatherer.block_bytes()) / element_bytes;
  const auto end = static_cast<std::int64_t>(begin + count) / element_bytes;
  for (auto first = static_cast<std::int64_t>(begin) / element_bytes; first < end; first += most) {
    const std::int64_t elements = std::min(most, end - first);
    std::byte* to = gatherer.stretch(static_cast<std::size_t>(elements * element_bytes));
    for (const Box& box : boxes_in_order(tensor.shape, first, elements)) {
      const std::byte* from = tensor.data;
      const Shape together = contiguous_strides(box.size);
      std::vector<CopiedDimension> dimensions;
      for (std::size_t d = 0; d < box.size.size(); ++d) {
        from += box.offset[d] * tensor.strides[d] * element_bytes;
        dimensions.push_back({box.size[d], tensor.strides[d] * units, together[d] * units});
      }
      dimensions.push_back({units, 1, 1});
      for_each_tile(dimensions, dtype, dtype, from, to,
                    [&](const cuda::Placing& placing) { gatherer.place(placing); });
      to += volume(box.size) * element_bytes;
    }
  }
}

}  // namespace shardwright
