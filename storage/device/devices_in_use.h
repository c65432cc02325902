#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "planner/names/tensor_spec.h"
#include "storage/device/device_options.h"
#include "storage/device/device_resources.h"

namespace shardwright {

/// A tensor in the memory of a CUDA device.
struct TensorOnDevice {
  std::string name;
  int device = 0;
};

/// The tensors of those specs that are on CUDA devices.
std::vector<TensorOnDevice> tensors_on_devices(const std::vector<TensorSpec>& specs);

/// The devices that tensors are on; none where all are in CPU memory, and then no call of the run-time is
/// made. All calls are on threads that end with the work: the caller's keeps its current device, and finds
/// none of our errors as its last one.
class DevicesInUse {
 public:
  /// Throws Error(argument) for options.memory that is too small, Error(mismatch) naming all tensors where
  /// this build has no kernels for GPUs.
  DevicesInUse(const std::vector<TensorOnDevice>& tensors, const DeviceOptions& options);

  bool any() const { return !devices_.empty(); }
  std::size_t count() const { return devices_.size(); }

  /// The calls to allocate pinned memory with; null where there is no device.
  const DeviceCalls* calls() const { return any() ? calls_ : nullptr; }

  /// The device of that number. REQUIRES: one of the tensors is on it.
  DeviceResources& at(int device) const { return *devices_.at(device); }

  /// Makes sure of driver, devices and kernels, and has what is done wait for the caller's streams. Throws
  /// Error(device).
  void open();

  /// Makes one of the devices current on the calling thread: what it allocates must not bring a context onto
  /// a device that nobody uses.
  void use_one() const;

  /// Gives back what was taken of all of them, once nothing is under way there any more; throws the first
  /// failure. The caller's thread must be one that ends with the work.
  void close();

  /// Opens the devices, works, and closes them, all of it on a thread of its own; just works where there are
  /// none. When `work` returns or throws, nothing may be under way.
  void run(const std::function<void()>& work);

  /// Taken of a device, where it was most.
  std::size_t peak_bytes() const;

 private:
  void open_here();
  void expect(DeviceStatus status, const char* call) const;

  const DeviceCalls* calls_;
  std::string first_tensor_;  // for messages
  std::map<int, std::unique_ptr<DeviceResources>> devices_;
};

}  // namespace shardwright
