#include "storage/device/device_resources.h"

#include "storage/device/device_error.h"

namespace shardwright {
namespace {

/// A place for what is about to be taken, which could be lost otherwise.
template <class Handle>
void make_room(std::vector<Handle>& taken) {
  taken.push_back({});
  taken.pop_back();
}

}  // namespace

void DeviceResources::expect(DeviceStatus status, const char* call, const std::string& tensor) const {
  if (status != device_status::success) throw device_error(calls_, status, call, device_, tensor);
}

void DeviceResources::open() {
  use();
  expect(calls_.load_kernels(), "loading the kernels", tensor_);
  beginning_ = event(tensor_);
  expect(calls_.event_record(beginning_, after_), "cudaEventRecord", tensor_);
}

void DeviceResources::use() const { expect(calls_.set_device(device_), "cudaSetDevice", tensor_); }

DeviceStream DeviceResources::stream(const std::string& tensor) {
  use();
  const std::lock_guard lock(mutex_);
  make_room(streams_);
  DeviceStream created = nullptr;
  expect(calls_.stream_create(&created), "cudaStreamCreate", tensor);
  const DeviceStatus waits = calls_.stream_wait_event(created, beginning_);
  if (waits != device_status::success) calls_.stream_destroy(created);  // nobody must find it
  expect(waits, "cudaStreamWaitEvent", tensor);
  streams_.push_back(created);
  return created;
}

DeviceEvent DeviceResources::event(const std::string& tensor) {
  use();
  const std::lock_guard lock(mutex_);
  make_room(events_);
  DeviceEvent created = nullptr;
  expect(calls_.event_create(&created), "cudaEventCreate", tensor);
  events_.push_back(created);
  return created;
}

std::byte* DeviceResources::memory(std::size_t bytes, const std::string& tensor) {
  use();
  const std::lock_guard lock(mutex_);
  make_room(memory_);
  void* allocated = nullptr;
  expect(calls_.device_allocate(&allocated, bytes), "cudaMalloc", tensor);
  memory_.push_back(allocated);
  bytes_ += bytes;
  return static_cast<std::byte*>(allocated);
}

std::size_t DeviceResources::bytes() const {
  const std::lock_guard lock(mutex_);
  return bytes_;
}

void DeviceResources::close() {
  const std::lock_guard lock(mutex_);
  DeviceStatus status = calls_.set_device(device_);
  const char* call = "cudaSetDevice";
  const auto note = [&](DeviceStatus found, const char* by) {
    if (found == device_status::success || status != device_status::success) return;
    status = found;
    call = by;
  };
  for (void* const allocated : memory_) note(calls_.device_free(allocated), "cudaFree");
  for (const DeviceStream created : streams_) note(calls_.stream_destroy(created), "cudaStreamDestroy");
  for (const DeviceEvent created : events_) note(calls_.event_destroy(created), "cudaEventDestroy");
  memory_.clear();
  streams_.clear();
  events_.clear();
  expect(status, call, tensor_);
}

}  // namespace shardwright
