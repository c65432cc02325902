#pragma once

#include <cstdint>

namespace shardwright {

/// What reading costs, on one thread: the difference decides whether the gaps in a box are read along with
/// it.
struct ReadCosts {
  double seconds_per_request = 0;
  double seconds_per_byte = 0;

  /// Runs of at least so many bytes are read without the gaps between them, whatever that costs, if these are
  /// more than a twentieth: what is read is then what is needed. 0: none are.
  std::uint64_t bytes_of_runs_apart = 0;

  bool operator==(const ReadCosts&) const = default;
};

/// Measured on two cores of an EPYC (Zen 5), Linux 6.18, ext4: a file in the page cache is copied at 26 GB/s
/// in requests of 1 MiB, and a request for some hundred bytes of it takes 0.4 µs. A run of a page apart costs
/// little beside its decoding, and leaves the caches and the memory's bandwidth to others.
inline constexpr ReadCosts costs_of_cached_files{0.4e-6, 1 / 26e9, 4096};

/// A disk, or a file system of the cluster, that gives 3 GB/s in large requests and 100,000 small ones a
/// second.
inline constexpr ReadCosts costs_of_files_on_disk{10e-6, 1 / 3e9};

/// An object of a store: an answer begins after 20 ms, and one connection brings 100 MB/s.
inline constexpr ReadCosts costs_of_remote_objects{20e-3, 1 / 100e6};

}  // namespace shardwright
