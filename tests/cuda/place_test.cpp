#include "kernels/cuda/place.h"

#include <deque>

#include "device_memory.h"
#include "tests/kernels/random_placing.h"

namespace shardwright::cuda {
namespace {

/// A random placing, and its memory on the device.
struct OnDevice {
  RandomPlacing host;
  DeviceMemory source;
  DeviceMemory destination;
  std::optional<DeviceMemory> scales;

  OnDevice(Random& random, const Change& change, std::int64_t rows, std::int64_t columns, Strides strides)
      : host(random, change, rows, columns, strides),
        source(host.source.memory),
        destination(host.destination.memory) {
    if (host.scales) scales.emplace(host.scales->memory);
  }

  Placing placing() const {
    Placing placing = host.placing();
    placing.source.data = source.address(placing.source.data);
    placing.destination.data = destination.address(placing.destination.data);
    if (scales) placing.scales.data = scales->address(placing.scales.data);
    return placing;
  }
};

void expect_as_on_the_cpu(const std::deque<OnDevice>& tiles) {
  std::vector<Placing> placings;
  for (const OnDevice& tile : tiles) placings.push_back(tile.placing());
  expect_success(place(placings, nullptr));
  expect_success(cudaDeviceSynchronize());
  for (const OnDevice& tile : tiles) {
    ASSERT_TRUE(tile.destination.bytes() == tile.host.expected.memory) << tile.host.describe();
  }
}

TEST(CudaDevicePlace, EqualsTheDefinitionForEveryChangeAndWritesNothingElse) {
  Random random(1);
  for (const Change& change : every_change()) {
    std::deque<OnDevice> tiles;
    for (int i = 0; i < 40; ++i) {
      tiles.emplace_back(random, change, random.number(0, 200), random.number(0, 200),
                         random.one_of<Strides>({Strides::straight, Strides::transposed, Strides::any}));
    }
    expect_as_on_the_cpu(tiles);
  }
}

TEST(CudaDevicePlace, TakesTilesOfManyBlocks) {
  Random random(2);
  for (const Strides strides : {Strides::straight, Strides::transposed, Strides::any}) {
    std::deque<OnDevice> tiles;
    for (const Format& format : formats) {
      tiles.emplace_back(random, Change{format.element, DType::BF16, format}, random.number(500, 1000),
                         random.number(2000, 3000), strides);
    }
    expect_as_on_the_cpu(tiles);
  }
}

}  // namespace
}  // namespace shardwright::cuda
