#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"
#include "storage/device/devices_in_use.h"
#include "storage/files/open_files.h"
#include "storage/load/device_placer.h"
#include "storage/load/load.h"
#include "storage/load/written_parts.h"

namespace shardwright {

/// The devices that a load writes to, see DevicesInUse, and how it does; none for a load into CPU memory.
class LoadDevices {
 public:
  /// Throws as DevicesInUse does.
  LoadDevices(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
              const LoadOptions& options, WrittenParts& written);

  bool any() const { return !placers_.empty(); }

  /// The calls to allocate pinned memory with; null where no device is written to.
  const DeviceCalls* calls() const { return devices_.calls(); }

  /// What a task may take of the staging of a device.
  std::size_t block_bytes() const { return block_bytes_; }

  /// Makes sure of driver, devices and kernels before anything is written, and has what is done wait for the
  /// caller's streams. Throws Error(device).
  void open() { devices_.open(); }

  /// Whether files that are read past the page cache can be read straight into the devices, from open() on;
  /// null if not.
  const GpuDirectCalls* open_gpu_direct();

  /// Closes the files, then GPUDirect Storage. REQUIRES: open_gpu_direct() came before, and no thread reads
  /// any more.
  void close_gpu_direct(OpenFiles& files) noexcept;

  const GpuDirectCalls* gpu_direct() const { return gpu_direct_; }

  /// Device memory that is left for such reads, of each device.
  std::size_t gpu_direct_bytes() const { return gpu_direct_ == nullptr ? 0 : gpu_direct_bytes_; }

  /// Counts what a thread took of it.
  void count(const TaskReader& reader);

  /// Makes one of the devices current on the calling thread.
  void use_one() const { devices_.use_one(); }

  /// The placer of the device that holds the tensor; null for a tensor in CPU memory.
  DevicePlacer* of(const TensorSpec& spec) const;

  /// Begins to fill a destination of the plan with zeros. REQUIRES: open() came before.
  void fill_with_zeros(std::uint32_t destination);

  /// Ends the load, once no thread submits any more: waits for the devices and gives back what was taken.
  void finish();

  /// Ends a load that has failed. Throws nothing.
  void abandon() noexcept;

  void report(LoadReport& report) const;

 private:
  DevicesInUse devices_;
  const DeviceOptions options_;
  const std::vector<TensorSpec>& specs_;
  const GpuDirectCalls* gpu_direct_ = nullptr;  // once it is open
  std::size_t block_bytes_ = 0;
  std::size_t gpu_direct_bytes_ = 0;
  std::map<int, std::size_t> gpu_direct_staging_;  // by device
  std::map<int, std::unique_ptr<DevicePlacer>> placers_;
};

}  // namespace shardwright
