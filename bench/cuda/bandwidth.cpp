// The kernels for GPUs against the bandwidth of the memory, which a copy within the device shows in the same
// run, and the bus for comparison. Prints one line where there is no device.

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "kernels/cuda/encode.h"
#include "kernels/cuda/place.h"

namespace shardwright::cuda {
namespace {

void check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(error));
  std::exit(1);
}

constexpr int rounds = 20;

/// Seconds of one call, the mean of those after the first.
double seconds_of(const std::function<void()>& call) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  call();
  check(cudaEventRecord(begin, nullptr), "cudaEventRecord");
  for (int i = 0; i < rounds; ++i) call();
  check(cudaEventRecord(end, nullptr), "cudaEventRecord");
  check(cudaEventSynchronize(end), "cudaEventSynchronize");
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
  check(cudaEventDestroy(begin), "cudaEventDestroy");
  check(cudaEventDestroy(end), "cudaEventDestroy");
  return milliseconds / 1e3 / rounds;
}

void print(const char* what, double bytes, double seconds, double memory) {
  std::printf("%-44s %8.0f GB/s", what, bytes / seconds / 1e9);
  if (memory > 0) std::printf(" %5.0f %% of a copy's", 100 * bytes / seconds / memory);
  std::printf("\n");
}

void measure() {
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  std::printf("%s; bytes read and written for each second\n", properties.name);

  constexpr std::int64_t rows = 8192;
  constexpr std::int64_t columns = 16384;
  constexpr std::int64_t elements = rows * columns;
  constexpr std::int64_t scale_count = elements / mxfp8_block_columns;
  std::byte* fp8 = nullptr;
  std::byte* scales = nullptr;
  std::byte* bf16 = nullptr;
  std::byte* pinned = nullptr;
  check(cudaMalloc(reinterpret_cast<void**>(&fp8), elements), "cudaMalloc");
  check(cudaMalloc(reinterpret_cast<void**>(&scales), scale_count), "cudaMalloc");
  check(cudaMalloc(reinterpret_cast<void**>(&bf16), 2 * elements), "cudaMalloc");
  check(cudaMallocHost(reinterpret_cast<void**>(&pinned), elements), "cudaMallocHost");
  // Elements without NaN, as weights are, and scales around one.
  std::vector<std::uint8_t> bytes(elements);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::uint8_t>(i * 2654435761U >> 13) & 0xF7;
  check(cudaMemcpy(fp8, bytes.data(), elements, cudaMemcpyHostToDevice), "cudaMemcpy");
  check(cudaMemset(scales, 120, scale_count), "cudaMemset");

  const double bus = seconds_of([&] {
    check(cudaMemcpyAsync(fp8, pinned, elements, cudaMemcpyHostToDevice, nullptr), "cudaMemcpyAsync");
  });
  print("pinned memory to the device", elements, bus, 0);
  check(cudaMemcpy(fp8, bytes.data(), elements, cudaMemcpyHostToDevice), "cudaMemcpy");
  const double copy = seconds_of([&] {
    check(cudaMemcpyAsync(bf16, bf16 + elements, elements, cudaMemcpyDeviceToDevice, nullptr),
          "cudaMemcpyAsync");
  });
  const double memory = 2.0 * elements / copy;
  print("copy within the device", 2.0 * elements, copy, 0);

  const double moved = 3.0 * elements + scale_count;
  for (const bool transposed : {false, true}) {
    const Placing placing{{fp8, DType::F8_E4M3, rows, columns, columns},
                          {scales, columns / mxfp8_block_columns},
                          {bf16, DType::BF16, transposed ? 1 : columns, transposed ? rows : 1}};
    const double seconds = seconds_of([&] { check(place({&placing, 1}, nullptr), "place"); });
    print(transposed ? "MXFP8 to BF16, transposed" : "MXFP8 to BF16", moved, seconds, memory);

    const TileToEncode encoding{
        {bf16, DType::BF16, rows, columns, transposed ? 1 : columns, transposed ? rows : 1},
        0,
        {},
        {reinterpret_cast<std::uint8_t*>(fp8), columns, reinterpret_cast<std::uint8_t*>(scales),
         columns / 32}};
    // Finds the bytes again that it was decoded from, or others of the same value: what is measured stays the
    // same.
    const double encoding_seconds = seconds_of([&] { check(encode({&encoding, 1}, nullptr), "encode"); });
    print(transposed ? "BF16 to MXFP8, transposed" : "BF16 to MXFP8", moved, encoding_seconds, memory);
  }

  // As many as a shard of experts has: what a launch costs counts.
  constexpr std::int64_t small_rows = 64;
  std::vector<Placing> small;
  for (std::int64_t row = 0; row < rows; row += small_rows) {
    small.push_back({{fp8 + row * columns, DType::F8_E4M3, small_rows, columns, columns},
                     {scales + row * columns / mxfp8_block_columns, columns / mxfp8_block_columns},
                     {bf16 + 2 * row * columns, DType::BF16, columns, 1}});
  }
  print("MXFP8 to BF16, 128 tiles of 1 MiB", moved,
        seconds_of([&] { check(place(small, nullptr), "place"); }), memory);
  cudaFreeHost(pinned);
  for (std::byte* of_device : {fp8, scales, bf16}) cudaFree(of_device);
}

}  // namespace
}  // namespace shardwright::cuda

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: no CUDA device");
    return 0;
  }
  shardwright::cuda::measure();
}
