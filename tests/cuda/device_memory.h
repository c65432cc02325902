#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace shardwright::cuda {

inline void expect_success(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(cudaGetErrorString(error));
}

/// A copy on the device of bytes of the host, at the same alignment.
class DeviceMemory {
 public:
  explicit DeviceMemory(const std::vector<std::uint8_t>& bytes) : host_(&bytes) {
    expect_success(cudaMalloc(reinterpret_cast<void**>(&data_), bytes.size() + 64));
    misalignment_ = reinterpret_cast<std::uintptr_t>(bytes.data()) % 64;
    if (bytes.empty()) return;
    expect_success(cudaMemcpy(data_ + misalignment_, bytes.data(), bytes.size(), cudaMemcpyHostToDevice));
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { cudaFree(data_); }

  /// Where the device has what the host has at an address.
  void* address(const void* of_host) const {
    return data_ + misalignment_ + (static_cast<const std::uint8_t*>(of_host) - host_->data());
  }

  std::vector<std::uint8_t> bytes() const {
    std::vector<std::uint8_t> copy(host_->size());
    if (copy.empty()) return copy;
    expect_success(cudaMemcpy(copy.data(), data_ + misalignment_, copy.size(), cudaMemcpyDeviceToHost));
    return copy;
  }

 private:
  const std::vector<std::uint8_t>* host_;
  std::uint8_t* data_ = nullptr;
  std::size_t misalignment_ = 0;
};

}  // namespace shardwright::cuda
