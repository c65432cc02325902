#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

namespace shardwright {

/// What a store does for one connection while the others are at work, as this process has measured it.
struct StoreSpeed {
  double latency = 0.02;            ///< seconds until an answer begins; at first as many stores have it
  double bytes_per_second = 100e6;  ///< at first likewise

  /// Bytes that a connection could bring while it waits for an answer: a gap of fewer is read along.
  std::uint64_t bytes_of_latency() const;
};

/// Scheme and host of an address: s3://bucket.
std::string store_of(const std::filesystem::path& address);

/// Of the store at this address.
StoreSpeed speed_of_store(const std::filesystem::path& address);

/// Takes note of a request for so many bytes, from its beginning to the last of them.
void note_request(const std::filesystem::path& address, std::uint64_t bytes, double seconds);

}  // namespace shardwright
