#include "storage/load/load_devices.h"

#include <algorithm>
#include <set>
#include <utility>

#include "planner/error.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

/// Enough for a launch to cost nothing beside the copies into it.
constexpr std::size_t largest_block_bytes = std::size_t{16} << 20;

std::vector<TensorOnDevice> destinations_on_devices(const LoadPlan& plan,
                                                    const std::vector<TensorSpec>& specs) {
  std::set<std::uint32_t> destinations;
  for (const Transfer& transfer : plan.transfers) {
    if (specs[transfer.destination].device == DeviceKind::cuda) destinations.insert(transfer.destination);
  }
  for (const std::uint32_t zero : plan.zeros) {
    if (specs[zero].device == DeviceKind::cuda) destinations.insert(zero);
  }
  std::vector<TensorOnDevice> tensors;
  for (const std::uint32_t d : destinations) tensors.push_back({specs[d].fqn, specs[d].device_index});
  return tensors;
}

}  // namespace

LoadDevices::LoadDevices(const LoadPlan& plan, const Catalog& catalog, const std::vector<TensorSpec>& specs,
                         const LoadOptions& options, WrittenParts& written)
    : devices_(destinations_on_devices(plan, specs), options.devices),
      options_(options.devices),
      specs_(specs) {
  if (!devices_.any()) return;
  gpu_direct_bytes_ = options_.memory / 2;
  block_bytes_ =
      std::min(largest_block_bytes, (options_.memory - gpu_direct_bytes_) / DevicePlacer::block_count);
  const auto add_placer = [&](const TensorSpec& spec) {
    if (spec.device != DeviceKind::cuda) return;
    std::unique_ptr<DevicePlacer>& placer = placers_[spec.device_index];
    if (placer) return;
    placer = std::make_unique<DevicePlacer>(devices_.at(spec.device_index), block_bytes_, plan, catalog,
                                            specs, written);
  };
  for (const Transfer& transfer : plan.transfers) add_placer(specs[transfer.destination]);
  for (const std::uint32_t zero : plan.zeros) add_placer(specs[zero]);
}

const GpuDirectCalls* LoadDevices::open_gpu_direct() {
  if (!any()) return nullptr;
  const GpuDirectCalls* const calls =
      options_.calls == nullptr ? gpu_direct_calls() : options_.gpu_direct_calls;
  if (calls == nullptr) return nullptr;
  on_its_own_thread([&] {
    use_one();
    if (calls->open()) gpu_direct_ = calls;
  });
  return gpu_direct_;
}

void LoadDevices::close_gpu_direct(OpenFiles& files) noexcept {
  if (gpu_direct_ == nullptr) return;
  const auto close = [&] {
    files.close_all();
    std::exchange(gpu_direct_, nullptr)->close();
  };
  try {
    on_its_own_thread([&] {
      devices_.at(placers_.begin()->first).try_to_use();
      close();
    });
  } catch (...) {  // no thread to be had
    close();
  }
}

void LoadDevices::count(const TaskReader& reader) {
  for (const auto& [device, _] : placers_) gpu_direct_staging_[device] += reader.staging_bytes_on(device);
}

DevicePlacer* LoadDevices::of(const TensorSpec& spec) const {
  return spec.device == DeviceKind::cuda ? placers_.at(spec.device_index).get() : nullptr;
}

void LoadDevices::fill_with_zeros(std::uint32_t destination) {
  on_its_own_thread([&] { of(specs_[destination])->fill_with_zeros(destination); });
}

void LoadDevices::finish() {
  if (!any()) return;
  on_its_own_thread([this] {
    for (const auto& [_, placer] : placers_) placer->finish();
    devices_.close();
  });
}

void LoadDevices::abandon() noexcept {
  if (!any()) return;
  bool has_begun = false;
  const auto end = [&] {
    has_begun = true;
    for (const auto& [_, placer] : placers_) placer->abandon();
    devices_.close();
  };
  try {
    on_its_own_thread(end);
  } catch (...) {  // what the load failed of is to be told, not this
    if (has_begun) return;
    try {  // no thread to be had
      end();
    } catch (...) {
    }
  }
}

void LoadDevices::report(LoadReport& report) const {
  report.devices = static_cast<int>(devices_.count());
  for (const auto& [device, placer] : placers_) {
    const auto direct = gpu_direct_staging_.find(device);
    report.peak_device_bytes =
        std::max(report.peak_device_bytes,
                 devices_.at(device).bytes() + (direct == gpu_direct_staging_.end() ? 0 : direct->second));
    report.bytes_to_devices += placer->bytes_copied();
    report.device_batches += placer->batches();
  }
}

}  // namespace shardwright
