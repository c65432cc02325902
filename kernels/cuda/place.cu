#include "kernels/cuda/place.h"
#include "kernels/cuda/place_bodies.h"

namespace shardwright::cuda {
namespace {

template <class Unit>
__global__ void __launch_bounds__(threads_in_block)
    place_straight_kernel(const __grid_constant__ TileBatch batch) {
  place_straight<Unit>(blockIdx.x, threadIdx.x, tile_of_block(batch, blockIdx.x));
}

template <class Unit>
__global__ void __launch_bounds__(threads_in_block)
    place_transposed_kernel(const __grid_constant__ TileBatch batch) {
  extern __shared__ __align__(16) std::byte shared[];
  const PlacedTile& tile = tile_of_block(batch, blockIdx.x);
  transpose_in<Unit>(blockIdx.x, threadIdx.x, tile, shared);
  __syncthreads();
  transpose_out<Unit>(blockIdx.x, threadIdx.x, tile, shared);
}

using Kernel = void (*)(TileBatch);

template <class Unit>
Kernel kernel_for(Layout layout) {
  return layout == Layout::straight ? place_straight_kernel<Unit> : place_transposed_kernel<Unit>;
}

Kernel kernel_of(Layout layout, int element_bytes) {
  switch (element_bytes) {
    case 1:
      return kernel_for<std::uint8_t>(layout);
    case 2:
      return kernel_for<std::uint16_t>(layout);
    case 4:
      return kernel_for<std::uint32_t>(layout);
    default:
      return kernel_for<std::uint64_t>(layout);
  }
}

}  // namespace

cudaError_t place(std::span<const Placing> placings, cudaStream_t stream) {
  for (const Launch& launch : launches_for(placings)) {
    void* arguments[] = {const_cast<TileBatch*>(&launch.batch)};  // copied by the launch
    const cudaError_t error = cudaLaunchKernel(kernel_of(launch.layout, launch.element_bytes), launch.blocks,
                                               threads_in_block, arguments, launch.shared_bytes, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t load_kernels() {
  for (const Layout layout : {Layout::straight, Layout::transposed}) {
    for (const int element_bytes : {1, 2, 4, 8}) {
      cudaFuncAttributes attributes;
      const void* const kernel = reinterpret_cast<const void*>(kernel_of(layout, element_bytes));
      if (const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel); error != cudaSuccess)
        return error;
    }
  }
  return cudaSuccess;
}

}  // namespace shardwright::cuda
