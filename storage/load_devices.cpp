#include "storage/load_devices.h"

#include <algorithm>
#include <exception>
#include <functional>
#include <set>
#include <string>
#include <thread>

#include "planner/problems.h"
#include "storage/device_error.h"

namespace shardwright {
namespace {

constexpr std::size_t smallest_device_memory = std::size_t{64} << 10;

/// Enough for a launch to cost nothing beside the copies into it.
constexpr std::size_t largest_block_bytes = std::size_t{16} << 20;

/// Runs work on a thread of its own, and throws here what it throws.
void on_its_own_thread(const std::function<void()>& work) {
  std::exception_ptr failure;
  std::thread([&] {
    try {
      work();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

std::vector<std::string> tensors_on_devices(const LoadPlan& plan, const std::vector<TensorSpec>& specs) {
  std::set<std::uint32_t> destinations;
  for (const Transfer& transfer : plan.transfers) {
    if (specs[transfer.destination].device == DeviceKind::cuda) destinations.insert(transfer.destination);
  }
  std::vector<std::string> names;
  for (const std::uint32_t d : destinations) names.push_back(specs[d].fqn);
  return names;
}

}  // namespace

LoadDevices::LoadDevices(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
                         const LoadOptions& options, WrittenParts& written)
    : calls_(options.device_calls != nullptr ? options.device_calls : cuda_calls()),
      is_real_(options.device_calls == nullptr),
      gpu_direct_calls_(options.gpu_direct_calls) {
  const std::vector<std::string> names = tensors_on_devices(plan, specs);
  if (names.empty()) return;
  first_tensor_ = names.front();
  if (calls_ == nullptr) {
    Problems problems;
    for (std::string& name : grouped_names(names)) problems.add(std::move(name));
    problems.throw_if_any(
        ErrorKind::mismatch,
        "this build of Shardwright has no kernels for GPUs (no nvcc was found); build it where "
        "there is one, or load into CPU memory. On a GPU are:");
  }
  if (options.device_memory < smallest_device_memory) {
    throw Error(ErrorKind::argument, "device_memory is " + std::to_string(options.device_memory) +
                                         "; expected at least " + std::to_string(smallest_device_memory));
  }
  gpu_direct_bytes_ = options.device_memory / 2;
  block_bytes_ =
      std::min(largest_block_bytes, (options.device_memory - gpu_direct_bytes_) / DevicePlacer::block_count);
  for (const Transfer& transfer : plan.transfers) {
    const TensorSpec& spec = specs[transfer.destination];
    if (spec.device != DeviceKind::cuda) continue;
    std::unique_ptr<DevicePlacer>& placer = placers_[spec.device_index];
    if (placer) continue;
    const auto after = options.device_streams.find(spec.device_index);
    placer = std::make_unique<DevicePlacer>(*calls_, spec.device_index,
                                            after == options.device_streams.end() ? nullptr : after->second,
                                            block_bytes_, plan, catalog, specs, written);
  }
}

void LoadDevices::expect(DeviceStatus status, const char* call) const {
  if (status != device_status::success) throw device_error(*calls_, status, call, -1, first_tensor_);
}

void LoadDevices::open() {
  if (!any()) return;
  on_its_own_thread([this] {
    int count = 0;
    expect(calls_->device_count(&count), "cudaGetDeviceCount");
    if (placers_.begin()->first < 0 || placers_.rbegin()->first >= count) {
      throw Error(ErrorKind::device,
                  first_tensor_ + ": expected a device from cuda:0 to cuda:" + std::to_string(count - 1) +
                      ", found one on cuda:" + std::to_string(placers_.rbegin()->first));
    }
    for (const auto& [_, placer] : placers_) placer->open();
  });
}

const GpuDirectCalls* LoadDevices::open_gpu_direct() {
  if (!any()) return nullptr;
  const GpuDirectCalls* const calls = is_real_ ? gpu_direct_calls() : gpu_direct_calls_;
  if (calls == nullptr) return nullptr;
  on_its_own_thread([&] {
    use_one();
    if (calls->open()) gpu_direct_ = calls;
  });
  return gpu_direct_;
}

LoadDevices::~LoadDevices() {
  if (gpu_direct_ != nullptr) gpu_direct_->close();
}

void LoadDevices::count(const TaskReader& reader) {
  for (const auto& [device, _] : placers_) gpu_direct_staging_[device] += reader.staging_bytes_on(device);
}

void LoadDevices::use_one() const {
  if (any()) placers_.begin()->second->use();
}

DevicePlacer* LoadDevices::of(const TensorSpec& spec) const {
  return spec.device == DeviceKind::cuda ? placers_.at(spec.device_index).get() : nullptr;
}

void LoadDevices::finish() {
  if (!any()) return;
  on_its_own_thread([this] {
    for (const auto& [_, placer] : placers_) placer->finish();
  });
}

void LoadDevices::abandon() noexcept {
  if (!any()) return;
  try {
    on_its_own_thread([this] {
      for (const auto& [_, placer] : placers_) placer->abandon();
    });
  } catch (...) {  // no thread to be had: what the load failed of is to be told, not this
  }
}

void LoadDevices::report(LoadReport& report) const {
  report.devices = static_cast<int>(placers_.size());
  for (const auto& [device, placer] : placers_) {
    const auto direct = gpu_direct_staging_.find(device);
    const std::size_t staging =
        placer->staging_bytes() + (direct == gpu_direct_staging_.end() ? 0 : direct->second);
    report.peak_device_bytes = std::max(report.peak_device_bytes, staging);
    report.bytes_to_devices += placer->bytes_copied();
    report.device_batches += placer->batches();
  }
}

}  // namespace shardwright
