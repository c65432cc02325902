#include "storage/device/device_error.h"

namespace shardwright {
namespace {

/// 13000 is CUDA 13.0.
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string advice_for(const DeviceCalls& calls, DeviceStatus status, int device) {
  switch (status) {
    case device_status::out_of_memory:
      return device < 0
                 ? "; give staging_bytes or the number of threads a smaller value"
                 : "; give device_memory a smaller value, or torch.cuda.empty_cache() back what torch keeps";
    case device_status::driver_too_old: {
      int driver = 0;
      int built = 0;
      calls.driver_version(&driver);
      calls.runtime_version(&built);
      return "; expected a driver for CUDA " + version_text(built) + " or later, found " +
             (driver == 0 ? "none" : "one for CUDA " + version_text(driver)) +
             ": update it, or build Shardwright with an older CUDA toolkit";
    }
    case device_status::no_kernel_image: {
      int capability = 0;
      calls.compute_capability(&capability, device);
      return "; this build has no kernels for the card's compute capability " +
             std::to_string(capability / 10) + "." + std::to_string(capability % 10) +
             ": build it with -D CMAKE_CUDA_ARCHITECTURES=" + std::to_string(capability) +
             ", or have the tensors in CPU memory";
    }
    default:
      return "";
  }
}

}  // namespace

Error device_error(const DeviceCalls& calls, DeviceStatus status, const char* call, int device,
                   const std::string& tensor) {
  const std::string message =
      tensor + ": " + call + " failed" + (device < 0 ? "" : " on cuda:" + std::to_string(device)) + ": " +
      calls.error_text(status) + " (" + std::to_string(status) + ")" + advice_for(calls, status, device);
  return {ErrorKind::device, message};
}

}  // namespace shardwright
