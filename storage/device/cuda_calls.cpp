#include "storage/device/device_calls.h"

#ifdef SHARDWRIGHT_HAS_CUDA
#include <cuda_runtime_api.h>

#include "kernels/cuda/encode.h"
#include "kernels/cuda/place.h"
#endif

namespace shardwright {

#ifdef SHARDWRIGHT_HAS_CUDA

namespace {

static_assert(device_status::success == cudaSuccess);
static_assert(device_status::out_of_memory == cudaErrorMemoryAllocation);
static_assert(device_status::driver_too_old == cudaErrorInsufficientDriver);
static_assert(device_status::no_device == cudaErrorNoDevice);
static_assert(device_status::no_kernel_image == cudaErrorNoKernelImageForDevice);
static_assert(device_status::not_ready == cudaErrorNotReady);

cudaStream_t stream_of(DeviceStream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t event_of(DeviceEvent event) { return static_cast<cudaEvent_t>(event); }

DeviceStatus compute_capability(int* value, int device) {
  int major = 0;
  int minor = 0;
  DeviceStatus status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess) {
    status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  }
  *value = 10 * major + minor;
  return status;
}

DeviceStatus create_stream(DeviceStream* stream) {
  cudaStream_t created = nullptr;
  const DeviceStatus status = cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking);
  *stream = created;
  return status;
}

DeviceStatus create_event(DeviceEvent* event) {
  cudaEvent_t created = nullptr;
  const DeviceStatus status =
      cudaEventCreateWithFlags(&created, cudaEventDisableTiming | cudaEventBlockingSync);
  *event = created;
  return status;
}

constexpr DeviceCalls real_calls{
    .device_count = [](int* count) -> DeviceStatus { return cudaGetDeviceCount(count); },
    .driver_version = [](int* version) -> DeviceStatus { return cudaDriverGetVersion(version); },
    .runtime_version = [](int* version) -> DeviceStatus { return cudaRuntimeGetVersion(version); },
    .compute_capability = compute_capability,
    .set_device = [](int device) -> DeviceStatus { return cudaSetDevice(device); },
    .load_kernels = []() -> DeviceStatus {
      const cudaError_t error = cuda::load_kernels();
      return error != cudaSuccess ? error : cuda::load_encoding_kernels();
    },
    .pinned_allocate = [](void** memory, std::size_t bytes) -> DeviceStatus {
      return cudaHostAlloc(memory, bytes, cudaHostAllocPortable);
    },
    .pinned_free = [](void* memory) -> DeviceStatus { return cudaFreeHost(memory); },
    .device_allocate = [](void** memory, std::size_t bytes) -> DeviceStatus {
      return cudaMalloc(memory, bytes);
    },
    .device_free = [](void* memory) -> DeviceStatus { return cudaFree(memory); },
    .stream_create = create_stream,
    .stream_destroy = [](DeviceStream stream) -> DeviceStatus {
      return cudaStreamDestroy(stream_of(stream));
    },
    .stream_synchronize = [](DeviceStream stream) -> DeviceStatus {
      return cudaStreamSynchronize(stream_of(stream));
    },
    .stream_wait_event = [](DeviceStream stream, DeviceEvent event) -> DeviceStatus {
      return cudaStreamWaitEvent(stream_of(stream), event_of(event), 0);
    },
    .event_create = create_event,
    .event_destroy = [](DeviceEvent event) -> DeviceStatus { return cudaEventDestroy(event_of(event)); },
    .event_record = [](DeviceEvent event, DeviceStream stream) -> DeviceStatus {
      return cudaEventRecord(event_of(event), stream_of(stream));
    },
    .event_query = [](DeviceEvent event) -> DeviceStatus { return cudaEventQuery(event_of(event)); },
    .event_synchronize = [](DeviceEvent event) -> DeviceStatus {
      return cudaEventSynchronize(event_of(event));
    },
    .copy_to_device = [](void* to, const void* from, std::size_t bytes, DeviceStream stream) -> DeviceStatus {
      return cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_of(stream));
    },
    .copy_from_device = [](void* to, const void* from, std::size_t bytes,
                           DeviceStream stream) -> DeviceStatus {
      return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_of(stream));
    },
    .place = [](std::span<const cuda::Placing> placings, DeviceStream stream) -> DeviceStatus {
      return cuda::place(placings, stream_of(stream));
    },
    .encode = [](std::span<const cuda::TileToEncode> encodings, DeviceStream stream) -> DeviceStatus {
      return cuda::encode(encodings, stream_of(stream));
    },
    .error_text = [](DeviceStatus status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); },
};

}  // namespace

const DeviceCalls* cuda_calls() { return &real_calls; }

#else

const DeviceCalls* cuda_calls() { return nullptr; }

#endif

}  // namespace shardwright
