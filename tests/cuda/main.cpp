#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>

/// The tests of this folder run on a device. Where there is none, one line says so, and ctest counts them as
/// skipped.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: no CUDA device");
    return 0;
  }
  return RUN_ALL_TESTS();
}
