#pragma once

#include <cuda_runtime_api.h>

#include <span>

#include "kernels/cuda/encoded_tile.h"

namespace shardwright::cuda {

/// Begins to encode tiles as MXFP8 on the current device, in the order of `stream`: what encode() of
/// kernels/encode.h does, bit for bit; or find_scales(), for a tile without elements. On memory, errors and
/// exceptions see place.h. No two tiles may write the same byte.
cudaError_t encode(std::span<const TileToEncode> encodings, cudaStream_t stream);

/// What load_kernels() of place.h does, for the kernels of `encode`.
cudaError_t load_encoding_kernels();

}  // namespace shardwright::cuda
