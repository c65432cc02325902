#include "storage/device/devices_in_use.h"

#include <algorithm>
#include <exception>

#include "planner/problems.h"
#include "storage/device/device_error.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

constexpr std::size_t smallest_device_memory = std::size_t{64} << 10;

}  // namespace

std::vector<TensorOnDevice> tensors_on_devices(const std::vector<TensorSpec>& specs) {
  std::vector<TensorOnDevice> tensors;
  for (const TensorSpec& spec : specs) {
    if (spec.device == DeviceKind::cuda) tensors.push_back({spec.fqn, spec.device_index});
  }
  return tensors;
}

DevicesInUse::DevicesInUse(const std::vector<TensorOnDevice>& tensors, const DeviceOptions& options)
    : calls_(calls_of(options)) {
  if (tensors.empty()) return;
  first_tensor_ = tensors.front().name;
  if (calls_ == nullptr) {
    std::vector<std::string> names;
    for (const TensorOnDevice& tensor : tensors) names.push_back(tensor.name);
    Problems problems;
    for (std::string& name : grouped_names(names)) problems.add(std::move(name));
    problems.throw_if_any(
        ErrorKind::mismatch,
        "this build of Shardwright has no kernels for GPUs (no nvcc was found); build it where "
        "there is one, or have the tensors in CPU memory. On a GPU are:");
  }
  if (options.memory < smallest_device_memory) {
    throw Error(ErrorKind::argument, "device_memory is " + std::to_string(options.memory) +
                                         "; expected at least " + std::to_string(smallest_device_memory));
  }
  for (const TensorOnDevice& tensor : tensors) {
    std::unique_ptr<DeviceResources>& device = devices_[tensor.device];
    if (device) continue;
    const auto after = options.streams.find(tensor.device);
    device = std::make_unique<DeviceResources>(
        *calls_, tensor.device, after == options.streams.end() ? nullptr : after->second, tensor.name);
  }
}

void DevicesInUse::expect(DeviceStatus status, const char* call) const {
  if (status != device_status::success) throw device_error(*calls_, status, call, -1, first_tensor_);
}

void DevicesInUse::open() {
  if (any()) on_its_own_thread([this] { open_here(); });
}

void DevicesInUse::open_here() {
  int count = 0;
  expect(calls_->device_count(&count), "cudaGetDeviceCount");
  if (devices_.begin()->first < 0 || devices_.rbegin()->first >= count) {
    throw Error(ErrorKind::device,
                first_tensor_ + ": expected a device from cuda:0 to cuda:" + std::to_string(count - 1) +
                    ", found one on cuda:" + std::to_string(devices_.rbegin()->first));
  }
  for (const auto& [_, device] : devices_) device->open();
}

void DevicesInUse::use_one() const {
  if (any()) devices_.begin()->second->use();
}

void DevicesInUse::close() {
  std::exception_ptr failure;
  for (const auto& [_, device] : devices_) {
    try {
      device->close();
    } catch (...) {
      if (!failure) failure = std::current_exception();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

void DevicesInUse::run(const std::function<void()>& work) {
  if (!any()) return work();
  on_its_own_thread([&] {
    try {
      open_here();
      work();
    } catch (...) {
      try {
        close();
      } catch (...) {  // the first failure says more
      }
      throw;
    }
    close();
  });
}

std::size_t DevicesInUse::peak_bytes() const {
  std::size_t most = 0;
  for (const auto& [_, device] : devices_) most = std::max(most, device->bytes());
  return most;
}

}  // namespace shardwright
