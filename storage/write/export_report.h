#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace shardwright {

/// What a rank did. Seconds of `encode` and `write` are thread seconds divided by the number of threads.
struct ExportReport {
  std::int64_t tensors = 0;         ///< HF tensors, scales included, that this rank wrote at least a part of
  std::uint64_t bytes_needed = 0;   ///< that its parts and headers take in the files
  std::uint64_t bytes_written = 0;  ///< that the operating system was given
  std::uint64_t write_requests = 0;
  std::size_t peak_staging_bytes = 0;    ///< of CPU memory, pinned for tensors on devices
  int devices = 0;                       ///< CUDA devices that were read from
  std::size_t peak_device_bytes = 0;     ///< of staging on a device, where it was most
  std::uint64_t bytes_from_devices = 0;  ///< copied from there, as the files have them
  std::int64_t device_batches = 0;       ///< in which that was done
  std::int64_t files = 0;
  int threads = 0;
  std::string row_sums;  ///< checksums of what was written, as bytes for the coordinator
  double plan_seconds = 0;
  double encode_seconds = 0;  ///< encoding, converting and regrouping, or waiting for devices that do
  double write_seconds = 0;
  double sync_seconds = 0;
  double total_seconds = 0;
  std::map<std::string, std::string> rounded;  ///< of the whole export, the same on every rank

  /// Of export_checkpoint(): the template's tensors that this layout has no place for, or (strict = false) no
  /// rank has; and tensors that the template has as another's, such as a tied head.
  std::vector<std::string> left_out;
};

}  // namespace shardwright
