#include "kernels/cuda/encode.h"

#include <deque>
#include <optional>

#include "device_memory.h"
#include "tests/kernels/random_encoding.h"

namespace shardwright::cuda {
namespace {

TEST(CudaDeviceEncode, EqualsTheDefinitionForTilesAnywhereInMemoryAndWritesNothingElse) {
  Random random(1);
  for (int round = 0; round < 200; ++round) {
    const std::int64_t longest = random.one_of<std::int64_t>({8, 70, 700});
    RandomEncoding host(random, random.one_of(encodable), random.number(0, longest),
                        random.number(0, longest),
                        random.one_of<Strides>({Strides::straight, Strides::transposed, Strides::any}));
    const DeviceMemory values(host.values.memory);
    const DeviceMemory first(host.first);
    const DeviceMemory last(host.last);
    const DeviceMemory elements(host.elements);
    const DeviceMemory scales(host.scales);
    TileToEncode encoding = host.encoding();
    encoding.values.data = values.address(encoding.values.data);
    encoding.encoded.elements = static_cast<std::uint8_t*>(elements.address(encoding.encoded.elements));
    encoding.encoded.scales = static_cast<std::uint8_t*>(scales.address(encoding.encoded.scales));
    const auto shared = [](const DeviceMemory& memory, const std::uint8_t* of_host) {
      return of_host == nullptr ? nullptr : static_cast<const std::uint8_t*>(memory.address(of_host));
    };
    encoding.shared = {shared(first, encoding.shared.first), shared(last, encoding.shared.last)};
    expect_success(encode(std::vector<TileToEncode>{encoding}, nullptr));
    expect_success(cudaDeviceSynchronize());
    ASSERT_TRUE(scales.bytes() == host.expected_scales) << host.describe();
    ASSERT_TRUE(elements.bytes() == host.expected_elements) << host.describe();
  }
}

}  // namespace
}  // namespace shardwright::cuda
