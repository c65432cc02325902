#pragma once

#include <cstddef>
#include <span>

#include "kernels/cuda/encoded_tile.h"
#include "kernels/cuda/placed_tile.h"

namespace shardwright {

using DeviceStream = void*;  ///< a cudaStream_t; null: the default stream of the current device
using DeviceEvent = void*;   ///< a cudaEvent_t
using DeviceStatus = int;    ///< a cudaError_t

/// The statuses that are told apart.
namespace device_status {
inline constexpr DeviceStatus success = 0;
inline constexpr DeviceStatus out_of_memory = 2;
inline constexpr DeviceStatus driver_too_old = 35;
inline constexpr DeviceStatus no_device = 100;
inline constexpr DeviceStatus no_kernel_image = 209;
inline constexpr DeviceStatus not_ready = 600;
}  // namespace device_status

/// The calls of the CUDA run-time that the engine makes, and the launch of its kernels: all that it knows of
/// CUDA, so that tests can put something else behind it that checks the order of things. Each does what the
/// run-time's function of that name does, on the current device of the calling thread. Thread-safe.
/// Everything here is in terms of plain pointers: no header of CUDA's is needed to include this one.
struct DeviceCalls {
  DeviceStatus (*device_count)(int* count);                    ///< cudaGetDeviceCount
  DeviceStatus (*driver_version)(int* version);                ///< cudaDriverGetVersion: 13000 for 13.0
  DeviceStatus (*runtime_version)(int* version);               ///< cudaRuntimeGetVersion
  DeviceStatus (*compute_capability)(int* value, int device);  ///< cudaDeviceGetAttribute, twice: 90 for 9.0
  DeviceStatus (*set_device)(int device);                      ///< cudaSetDevice
  DeviceStatus (*load_kernels)();  ///< cuda::load_kernels and load_encoding_kernels

  DeviceStatus (*pinned_allocate)(void** memory, std::size_t bytes);  ///< cudaHostAlloc, for all devices
  DeviceStatus (*pinned_free)(void* memory);                          ///< cudaFreeHost
  DeviceStatus (*device_allocate)(void** memory, std::size_t bytes);  ///< cudaMalloc
  DeviceStatus (*device_free)(void* memory);                          ///< cudaFree

  DeviceStatus (*stream_create)(DeviceStream* stream);      ///< cudaStreamCreateWithFlags: not blocking
  DeviceStatus (*stream_destroy)(DeviceStream stream);      ///< cudaStreamDestroy
  DeviceStatus (*stream_synchronize)(DeviceStream stream);  ///< cudaStreamSynchronize
  DeviceStatus (*stream_wait_event)(DeviceStream stream, DeviceEvent event);  ///< cudaStreamWaitEvent

  DeviceStatus (*event_create)(DeviceEvent* event);  ///< cudaEventCreateWithFlags: no timing, sleeping waits
  DeviceStatus (*event_destroy)(DeviceEvent event);  ///< cudaEventDestroy
  DeviceStatus (*event_record)(DeviceEvent event, DeviceStream stream);  ///< cudaEventRecord
  DeviceStatus (*event_query)(DeviceEvent event);                        ///< cudaEventQuery
  DeviceStatus (*event_synchronize)(DeviceEvent event);                  ///< cudaEventSynchronize

  /// cudaMemcpyAsync from the host to the device, and from the device to the host.
  DeviceStatus (*copy_to_device)(void* to, const void* from, std::size_t bytes, DeviceStream stream);
  DeviceStatus (*copy_from_device)(void* to, const void* from, std::size_t bytes, DeviceStream stream);

  /// cuda::place and cuda::encode.
  DeviceStatus (*place)(std::span<const cuda::Placing> placings, DeviceStream stream);
  DeviceStatus (*encode)(std::span<const cuda::TileToEncode> encodings, DeviceStream stream);

  const char* (*error_text)(DeviceStatus status);  ///< cudaGetErrorString
};

/// The real calls; null where this build has no kernels for GPUs.
const DeviceCalls* cuda_calls();

}  // namespace shardwright
