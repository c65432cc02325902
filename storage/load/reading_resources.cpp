#include "storage/load/reading_resources.h"

#include <algorithm>
#include <memory>
#include <set>
#include <string>

#include "planner/error.h"
#include "storage/device/staging.h"
#include "storage/files/plain_http.h"
#include "storage/files/printable.h"
#include "storage/files/remote_calls.h"
#include "storage/files/store_speed.h"
#include "storage/files/uring.h"
#include "storage/load/task_reader.h"
#include "storage/threads.h"

namespace shardwright {
namespace {

/// Staging for one read at a time if the caller does not say: small enough to stay in the cache of a core,
/// large enough for a system call to cost nothing beside it.
constexpr std::size_t default_buffer_bytes = std::size_t{1} << 20;
constexpr std::size_t largest_buffer_bytes = std::size_t{4} << 20;
constexpr std::size_t smallest_buffer_bytes = 4096;
constexpr std::size_t most_staging = std::size_t{128} << 20;  // whatever the number of threads
constexpr std::size_t most_threads = 1024;

/// For files on a disk: it wants some sixteen reads of 4 MiB at a time, into huge pages, as a request is cut
/// up where memory is not contiguous. On two threads of an EPYC and a virtual disk, 2.3 GB take 0.73 s
/// so, 1.1 s in reads of 1 MiB into pages of 4 KiB, and 0.62 s with the best of dd's settings.
constexpr std::size_t reads_from_disk = 16;
constexpr std::size_t most_reads = 8;  // of one thread
constexpr std::size_t staging_for_disks = std::size_t{64} << 20;
constexpr std::size_t threads_that_wait = 4;  // for each processor, where a read makes its thread wait

/// For objects: many requests fill lines that are much faster than one connection.
struct RequestBounds {
  std::size_t bytes;  ///< of a request
  std::size_t at_once;
};

/// Two matrices of 8 MiB, or one of 16, fit into a request with their scales: servers take time for each.
constexpr RequestBounds by_plain_http = {std::size_t{17} << 20, 16};

/// What the library receives as a whole is in memory a second time meanwhile: half as long.
constexpr RequestBounds by_library = {std::size_t{17} << 19, 20};

/// What a request brings takes several times its latency; of a small load each connection gets a part, as far
/// as that allows.
constexpr std::size_t fewest_request_bytes = std::size_t{256} << 10;
constexpr std::uint64_t latencies_of_request = 4;
constexpr std::uint64_t needed_per_gap = 200;  // so much more is read than what lies in gaps

/// Of a store that answers at once, fewer and shorter requests bring as much: their buffers are used again
/// while a cache still has them, and not given back to the system and taken anew.
constexpr std::size_t most_quick_request_bytes = by_library.bytes;
constexpr double quick_latency = 0.005;  // seconds
constexpr double quick_rate = 500e6;     // bytes a second; a store that is slower may be so by connection
constexpr std::size_t fewest_requests_at_once = 8;
constexpr std::size_t quick_requests_of_thread = 4;

constexpr std::size_t most_object_requests = 256;  // where the caller gives the staging for it
constexpr std::size_t least_requests_of_thread = 2;

/// Buffers of a thread that are being copied to a device while it fills others.
constexpr std::size_t copies_of_thread = 2;

std::size_t threads_of(const LoadOptions& options) {
  return static_cast<std::size_t>(options.threads > 0 ? options.threads : processors());
}

void ask_for_objects(std::uint64_t bytes_needed, const Catalog& catalog, std::size_t threads,
                     FileReading& reading) {
  const StoreSpeed speed = speed_of_store(catalog.directory);
  const bool is_plain =
      !catalog.files.empty() && is_had_by_plain_http(catalog.directory / catalog.files.front().name);
  const RequestBounds bounds = is_plain ? by_plain_http : by_library;
  reading.are_objects = true;
  reading.requests_at_once = bounds.at_once;
  std::size_t most_bytes = bounds.bytes;
  if (speed.latency <= quick_latency && speed.bytes_per_second >= quick_rate) {
    reading.requests_at_once =
        std::clamp(quick_requests_of_thread * threads, fewest_requests_at_once, bounds.at_once);
    most_bytes = most_quick_request_bytes;
  }
  const std::uint64_t worth_asking =
      std::max<std::uint64_t>(fewest_request_bytes, latencies_of_request * speed.bytes_of_latency());
  reading.request_bytes =
      std::min<std::uint64_t>(most_bytes, std::max(worth_asking, bytes_needed / reading.requests_at_once));
  reading.gap_bytes = speed.bytes_of_latency();
  reading.gaps_bytes = bytes_needed / needed_per_gap;
}

}  // namespace

std::int64_t FileReading::files_in_background() const {
  return std::count(in_background.begin(), in_background.end(), true);
}

std::optional<bool> direct_io_of(const LoadOptions& options) {
  const bool room =
      options.staging_bytes == 0 || options.staging_bytes >= TaskReader::smallest_buffer_for_pages;
  if (!room || options.direct_io == DirectIo::never) return false;
  if (options.direct_io == DirectIo::always) return true;
  return std::nullopt;
}

FileReading open_files_of(const LoadPlan& plan, const Catalog& catalog, OpenFiles& files,
                          const LoadOptions& options) {
  FileReading reading;
  if (is_remote(catalog.directory)) {
    if (options.reads != Reads::automatic) {
      throw Error(ErrorKind::argument, "reads: expected \"auto\" for " +
                                           printable(catalog.directory.native()) +
                                           ", which is no directory of this machine; leave it out");
    }
    reading.costs.assign(catalog.files.size(), costs_of_remote_objects);
    reading.in_background.assign(catalog.files.size(), true);
    ask_for_objects(plan.bytes_needed, catalog, threads_of(options), reading);
    return reading;
  }
  if (options.reads == Reads::io_uring && !has_io_uring()) {
    throw Error(ErrorKind::argument,
                "reads: io_uring was asked for, but this build or this kernel does not offer it; use "
                "\"auto\" or \"pread\"");
  }
  std::set<std::uint32_t> tensors;
  for (const Transfer& transfer : plan.transfers) {
    if (is_empty(transfer.source_box)) continue;
    tensors.insert(transfer.source);
    for (const std::int64_t companion : {transfer.scales, transfer.global}) {
      if (companion >= 0) tensors.insert(static_cast<std::uint32_t>(companion));
    }
  }
  reading.costs.assign(catalog.files.size(), costs_of_cached_files);
  reading.in_background.assign(catalog.files.size(), false);
  const bool may_use_uring = options.reads != Reads::pread && has_io_uring();
  for (const std::uint32_t t : tensors) {
    const SourceTensor& tensor = catalog.tensors[t];
    const OpenFiles::Use file = files.use(tensor, nullptr).weights;
    if (!file->is_cached) {
      reading.costs[tensor.file] = costs_of_files_on_disk;
      reading.some_on_disk = true;
    }
    reading.in_background[tensor.file] = may_use_uring && (options.reads == Reads::io_uring ||
                                                           !file->is_cached || file->direct_descriptor >= 0);
  }
  return reading;
}

Joining joining_of(const FileReading& reading, std::size_t request_bytes) {
  if (!reading.are_objects) return {};
  return {request_bytes, reading.gap_bytes, reading.gaps_bytes};
}

namespace {

/// Threads decode, and each has several requests under way.
Resources resources_for_objects(const LoadOptions& options, std::size_t most_tasks,
                                const FileReading& reading, const DeviceRoom& device) {
  std::size_t buffer_bytes = reading.request_bytes;
  std::size_t buffers = reading.requests_at_once;
  if (options.staging_bytes > 0) {
    // Of little staging shorter ones, so that several are under way.
    buffer_bytes = std::clamp(options.staging_bytes / fewest_requests_at_once,
                              std::min(buffer_bytes, most_quick_request_bytes), buffer_bytes);
    buffers = std::clamp<std::size_t>(options.staging_bytes / buffer_bytes, 1, most_object_requests);
    buffer_bytes = std::min(buffer_bytes, options.staging_bytes / buffers);
  }
  std::size_t threads = threads_of(options);
  threads = std::min({threads, std::max<std::size_t>(1, buffers / least_requests_of_thread), most_tasks});
  std::size_t reads = buffers / threads;
  if (device.block_bytes > 0) {
    if (options.staging_bytes == 0) reads += copies_of_thread;
    buffer_bytes = std::min(buffer_bytes, device.block_bytes);
  }
  return {static_cast<int>(threads), static_cast<int>(reads), buffer_bytes, false, false};
}

}  // namespace

Resources resources_for(const LoadOptions& options, const FileReading& reading, bool some_file_is_direct,
                        std::size_t most_tasks, const DeviceRoom& device) {
  if (options.staging_bytes > 0 && options.staging_bytes < smallest_buffer_bytes) {
    throw Error(ErrorKind::argument, "staging_bytes is " + std::to_string(options.staging_bytes) +
                                         "; expected at least " + std::to_string(smallest_buffer_bytes));
  }
  if (reading.are_objects) return resources_for_objects(options, most_tasks, reading, device);
  const bool background = reading.files_in_background() > 0;
  const bool from_disk = reading.some_on_disk || some_file_is_direct;
  std::size_t threads = threads_of(options);
  const bool to_devices = device.block_bytes > 0;
  const bool gpu_direct = device.gpu_direct_bytes > 0;
  if (from_disk && (!background || gpu_direct)) threads *= threads_that_wait;
  threads = std::min({threads, most_threads, most_tasks});
  std::size_t reads = background ? std::clamp(reads_from_disk / threads, std::size_t{2}, most_reads) : 1;
  if (to_devices) reads += copies_of_thread;
  std::size_t buffer_bytes = default_buffer_bytes;
  if (from_disk || to_devices) {
    buffer_bytes =
        std::clamp(staging_for_disks / (threads * reads), default_buffer_bytes, largest_buffer_bytes);
  } else if (options.huge_pages) {
    buffer_bytes = huge_page_bytes;
  }

  buffer_bytes = std::min(buffer_bytes, most_staging / (threads * reads));

  if (options.staging_bytes > 0) {
    const std::size_t smallest =
        some_file_is_direct ? TaskReader::smallest_buffer_for_pages : smallest_buffer_bytes;
    const std::size_t buffers = options.staging_bytes / smallest;
    threads = std::min(threads, buffers);
    reads = std::min(reads, buffers / threads);
    buffer_bytes = std::min(largest_buffer_bytes, options.staging_bytes / (threads * reads));
  }
  if (to_devices) buffer_bytes = std::min(buffer_bytes, device.block_bytes);
  const bool direct_has_room = threads * reads * buffer_bytes <= device.gpu_direct_bytes;
  const bool huge_pages = (options.huge_pages || from_disk) && buffer_bytes >= huge_page_bytes && !to_devices;
  if (huge_pages) buffer_bytes -= buffer_bytes % huge_page_bytes;
  return {static_cast<int>(threads), static_cast<int>(reads), buffer_bytes, huge_pages,
          gpu_direct && direct_has_room};
}

std::size_t most_tasks_of(const LoadPlan& plan) {
  return std::max<std::size_t>({1, plan.transfers.size(), plan.bytes_needed / smallest_buffer_bytes});
}

}  // namespace shardwright
