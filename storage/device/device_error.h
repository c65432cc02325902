#pragma once

#include <string>

#include "planner/error.h"
#include "storage/device/device_calls.h"

namespace shardwright {

/// What a call of the run-time that failed comes to: Error(device) that names the tensor it was made for, the
/// call, the device and what to do. `device` may be -1: none in particular.
Error device_error(const DeviceCalls& calls, DeviceStatus status, const char* call, int device,
                   const std::string& tensor);

}  // namespace shardwright
