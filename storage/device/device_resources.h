#pragma once

#include <cstddef>
#include <mutex>
#include <string>
#include <vector>

#include "storage/device/device_calls.h"

namespace shardwright {

/// One device that tensors are on, and what has been taken of it: memory, streams and events, which are given
/// back together. Thread-safe. All functions that throw throw Error(device), which names the call and
/// the `tensor` that it is made for.
class DeviceResources {
 public:
  /// `after`: the stream whose work so far comes before all that is done in streams of stream(). `tensor`:
  /// one that is on the device, for messages that concern none in particular.
  DeviceResources(const DeviceCalls& calls, int device, DeviceStream after, std::string tensor)
      : calls_(calls), device_(device), after_(after), tensor_(std::move(tensor)) {}
  DeviceResources(const DeviceResources&) = delete;
  DeviceResources& operator=(const DeviceResources&) = delete;

  const DeviceCalls& calls() const { return calls_; }

  /// Makes sure that the kernels are there, and takes note of what is in `after`. REQUIRES: comes first.
  void open();

  /// Makes the device current on the calling thread.
  void use() const;

  /// Does as use(), and returns the status instead of throwing.
  DeviceStatus try_to_use() const noexcept { return calls_.set_device(device_); }

  DeviceStream stream(const std::string& tensor);
  DeviceEvent event(const std::string& tensor);
  std::byte* memory(std::size_t bytes, const std::string& tensor);

  /// Throws for a status that is not success.
  void expect(DeviceStatus status, const char* call, const std::string& tensor) const;

  /// Bytes of the memory that has been taken.
  std::size_t bytes() const;

  /// Gives everything back, whatever fails on the way, and throws the first failure. Nothing may be under way
  /// any more in the streams.
  void close();

 private:
  const DeviceCalls& calls_;
  const int device_;
  const DeviceStream after_;
  const std::string tensor_;

  mutable std::mutex mutex_;         // guards what follows
  DeviceEvent beginning_ = nullptr;  // when the work of `after` is done
  std::vector<void*> memory_;
  std::vector<DeviceStream> streams_;
  std::vector<DeviceEvent> events_;
  std::size_t bytes_ = 0;
};

}  // namespace shardwright
