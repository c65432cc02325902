#include "storage/device/device_options.h"

#include "storage/device/device_calls.h"

namespace shardwright {

const DeviceCalls* calls_of(const DeviceOptions& options) {
  return options.calls != nullptr ? options.calls : cuda_calls();
}

}  // namespace shardwright
