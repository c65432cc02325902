#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "kernels/cuda/placed_tile.h"

namespace shardwright::cuda {

/// Begins to place or decode tiles on the current device, in the order of `stream`: what place() and decode()
/// of kernels/decode.h do, bit for bit. All memory must be readable and writable by that device, and stay as
/// it is until the stream has come past this; the span and the tiles in it are no longer needed when this
/// returns. No two placings may write the same element. Allocates nothing on the device.
///
/// Returns the error of the launch, cudaSuccess if there was none (cudaErrorNoKernelImageForDevice: the card
/// is older than sm_80). Throws std::invalid_argument, before anything is launched, for what place() and
/// decode() refuse.
cudaError_t place(std::span<const Placing> placings, cudaStream_t stream);

/// Makes sure that the kernels of `place` are on the current device, where they would come with their first
/// launch. cudaErrorNoKernelImageForDevice: none of the architectures they were built for fits the card.
cudaError_t load_kernels();

}  // namespace shardwright::cuda
