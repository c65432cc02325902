#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <vector>

#include "planner/catalog.h"
#include "planner/load_plan.h"
#include "planner/tensor_spec.h"
#include "storage/device_placer.h"
#include "storage/load.h"
#include "storage/written_parts.h"

namespace shardwright {

/// The devices that a load writes to; none for a load into CPU memory, which then makes no call of the
/// run-time. All calls are on threads that end with the load: the caller's keeps its current device, and
/// finds none of our errors as its last one.
class LoadDevices {
 public:
  /// Throws Error(argument) for a device_memory that is too small, Error(mismatch) naming all tensors
  /// concerned where this build has no kernels for GPUs.
  LoadDevices(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
              const LoadOptions& options, WrittenParts& written);

  ~LoadDevices();
  LoadDevices(const LoadDevices&) = delete;
  LoadDevices& operator=(const LoadDevices&) = delete;

  bool any() const { return !placers_.empty(); }

  /// The calls to allocate pinned memory with; null where no device is written to.
  const DeviceCalls* calls() const { return any() ? calls_ : nullptr; }

  /// What a task may take of the staging of a device.
  std::size_t block_bytes() const { return block_bytes_; }

  /// Makes sure of driver, devices and kernels before anything is written, and has what is done wait for the
  /// caller's streams. Throws Error(device).
  void open();

  /// Whether files that are read past the page cache can be read straight into the devices, from open() on;
  /// null if not. What is opened for it is closed at the very end, after all files.
  const GpuDirectCalls* open_gpu_direct();

  const GpuDirectCalls* gpu_direct() const { return gpu_direct_; }

  /// Device memory that is left for such reads, of each device.
  std::size_t gpu_direct_bytes() const { return gpu_direct_ == nullptr ? 0 : gpu_direct_bytes_; }

  /// What a thread took of it.
  void count(const TaskReader& reader);

  /// Makes one of the devices current on the calling thread: what it allocates must not bring a context onto
  /// a device that nobody uses.
  void use_one() const;

  /// The one that holds the tensor; null for one in CPU memory.
  DevicePlacer* of(const TensorSpec& spec) const;

  /// Ends the load, once no thread submits any more: waits for the devices and gives back what was taken.
  void finish();

  /// The same for a load that has failed. Throws nothing.
  void abandon() noexcept;

  void report(LoadReport& report) const;

 private:
  void expect(DeviceStatus status, const char* call) const;

  const DeviceCalls* calls_;
  const bool is_real_;                          // no test's devices
  const GpuDirectCalls* gpu_direct_calls_;      // of a test
  const GpuDirectCalls* gpu_direct_ = nullptr;  // once it is open
  std::size_t block_bytes_ = 0;
  std::size_t gpu_direct_bytes_ = 0;
  std::map<int, std::size_t> gpu_direct_staging_;  // by device
  std::string first_tensor_;                       // on a device, for messages
  std::map<int, std::unique_ptr<DevicePlacer>> placers_;
};

}  // namespace shardwright
