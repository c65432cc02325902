#pragma once

#include <string>
#include <vector>

#include "storage/boxes/gather.h"
#include "tests/planner/random_layouts.h"
#include "tests/storage/fake_devices.h"

namespace shardwright {

/// Tensors of any strides and elements, some of them larger than what has a checksum of its own, in CPU
/// memory and, some of them, on devices.
struct RandomTensors {
  std::vector<std::vector<std::uint8_t>> memory;
  std::vector<TensorInMemory> host;
  std::vector<TensorInMemory> tensors;  // as the file is given them
  std::vector<std::uint64_t> sizes;
  std::vector<std::string> names;

  void add(Random& random, FakeDevices& devices, Shape shape, std::uint64_t element_bytes, bool contiguous) {
    TensorInMemory tensor{nullptr, std::move(shape), {}, element_bytes};
    tensor.strides = contiguous_strides(tensor.shape);
    std::int64_t first = 0;
    std::int64_t reach = volume(tensor.shape);
    if (!contiguous) {
      std::vector<std::size_t> order(tensor.shape.size());
      for (std::size_t d = 0; d < order.size(); ++d) order[d] = d;
      random.shuffle(order);
      std::int64_t stride = random.between(1, 2);
      for (const std::size_t d : order) {  // innermost first
        const bool mirrored = random.once_in(4);
        const bool expanded = random.once_in(8);
        tensor.strides[d] = expanded ? 0 : mirrored ? -stride : stride;
        if (mirrored && !expanded) first += (tensor.shape[d] - 1) * stride;
        stride *= expanded ? 1 : tensor.shape[d] + random.between(0, 2);
      }
      reach = stride;
    }
    std::vector<std::uint8_t>& bytes = memory.emplace_back(static_cast<std::size_t>(reach) * element_bytes);
    for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random.between(0, 255));
    // An empty tensor has no first element.
    const auto offset = volume(tensor.shape) == 0 ? 0 : first * static_cast<std::int64_t>(element_bytes);
    tensor.data = reinterpret_cast<const std::byte*>(bytes.data()) + offset;
    host.push_back(tensor);
    if (!random.once_in(4)) {
      tensor.cuda_device = static_cast<int>(random.between(0, 2));
      std::byte* const there = devices.tensor_memory(tensor.cuda_device, bytes.size());
      devices.stream_that_writes(tensor.cuda_device, there, bytes);
      tensor.data = there + offset;
    }
    tensors.push_back(tensor);
    sizes.push_back(static_cast<std::uint64_t>(volume(tensor.shape)) * element_bytes);
    names.push_back("tensor " + std::to_string(names.size()));
  }

  RandomTensors(Random& random, FakeDevices& devices, bool large) {
    for (std::int64_t i = random.between(1, 12); i > 0; --i) {
      const std::int64_t rank = random.between(0, 4);
      add(random, devices, random_shape(random, rank, 0, rank == 1 ? 3000 : 12),
          std::uint64_t{1} << random.between(0, 4), random.once_in(3));
    }
    if (!large) return;
    add(random, devices, {random.between(1100, 1200), random.between(1000, 1100)}, 4, false);
    add(random, devices, {random.between(1200000, 1300000)}, 4, true);
  }
};

}  // namespace shardwright
