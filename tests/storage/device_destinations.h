#pragma once

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "storage/load/load.h"
#include "tests/storage/decoded_checkpoint.h"
#include "tests/storage/fake_devices.h"

namespace shardwright {

inline std::vector<Bytes> host_bytes(const Destinations& destinations) {
  std::vector<Bytes> all;
  for (const Memory& memory : destinations.memory) all.push_back(memory.bytes);
  return all;
}

inline void clear(Destinations& destinations) {
  for (Memory& memory : destinations.memory) {
    std::fill(memory.bytes.begin(), memory.bytes.end(), Memory::untouched);
  }
}

/// Destinations of which some are moved to devices, where the trainer's streams have yet to initialise them.
struct DeviceDestinations {
  FakeDevices devices;
  std::vector<TensorSpec> specs;  // as load() is given them
  LoadOptions options;

  /// `one_in`: about one tensor of so many stays in CPU memory; 0: none does.
  DeviceDestinations(std::uint64_t seed, Random& random, Destinations& host, std::int64_t one_in)
      : devices(seed), specs(host.specs), host_(host), moved_(specs.size()) {
    for (std::size_t n = 0; n < specs.size(); ++n) {
      if (one_in > 0 && random.once_in(one_in)) continue;
      TensorSpec& spec = specs[n];
      const Bytes& bytes = host.memory[n].bytes;
      const int device = static_cast<int>(random.between(0, 2));
      moved_[n] = devices.tensor_memory(device, bytes.size());
      const std::ptrdiff_t first = static_cast<const std::uint8_t*>(spec.data) - bytes.data();
      spec.data = moved_[n] + first;
      spec.device = DeviceKind::cuda;
      spec.device_index = device;
      spec.device_name = "cuda:" + std::to_string(device);
      DeviceStream stream = devices.stream_that_fills(device, moved_[n], bytes.size(), Memory::untouched);
      if (random.once_in(2)) options.devices.streams[device] = stream;  // else the default one, which it is
    }
    options.devices.calls = devices.calls();
  }

  /// Brings the bytes to where the tensors would be on the host.
  void collect() {
    devices.open_memory();
    for (std::size_t n = 0; n < specs.size(); ++n) {
      if (moved_[n] != nullptr)
        std::memcpy(host_.memory[n].bytes.data(), moved_[n], host_.memory[n].bytes.size());
    }
  }

 private:
  Destinations& host_;
  std::vector<std::byte*> moved_;
};

}  // namespace shardwright
