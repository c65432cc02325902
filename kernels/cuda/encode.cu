#include "kernels/cuda/encode.h"
#include "kernels/cuda/encode_bodies.h"
#include "kernels/cuda/place_bodies.h"

namespace shardwright::cuda {
namespace {

template <class Unit>
__global__ void __launch_bounds__(threads_in_block)
    encode_kernel(const __grid_constant__ EncodedBatch batch) {
  extern __shared__ __align__(16) std::byte shared[];
  const EncodedPart& tile = tile_of_block(batch, blockIdx.x);
  read_square<Unit>(blockIdx.x, threadIdx.x, tile, shared);
  __syncthreads();
  find_magnitudes<Unit>(threadIdx.x, tile, shared);
  __syncthreads();
  write_encoded<Unit>(blockIdx.x, threadIdx.x, tile, shared);
}

using Kernel = void (*)(EncodedBatch);

Kernel kernel_of(int value_bytes) {
  return value_bytes == 2 ? encode_kernel<std::uint16_t> : encode_kernel<std::uint32_t>;
}

}  // namespace

cudaError_t encode(std::span<const TileToEncode> encodings, cudaStream_t stream) {
  for (const EncodingLaunch& launch : encoding_launches_for(encodings)) {
    void* arguments[] = {const_cast<EncodedBatch*>(&launch.batch)};  // copied by the launch
    const cudaError_t error = cudaLaunchKernel(kernel_of(launch.value_bytes), launch.blocks, threads_in_block,
                                               arguments, launch.shared_bytes, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t load_encoding_kernels() {
  for (const int value_bytes : {2, 4}) {
    cudaFuncAttributes attributes;
    const void* const kernel = reinterpret_cast<const void*>(kernel_of(value_bytes));
    if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess)
      return error;
  }
  return cudaSuccess;
}

}  // namespace shardwright::cuda
