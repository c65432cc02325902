#include "tests/storage/fake_devices.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "tests/kernels/run_launch.h"

namespace shardwright {
namespace {

bool overlap(const std::byte* a, std::size_t a_bytes, const std::byte* b, std::size_t b_bytes) {
  return a < b + b_bytes && b < a + a_bytes;
}

/// Of this thread, as the FakeDevices of that number know it.
struct CurrentDevice {
  std::uint64_t serial = 0;
  int device = 0;
};
thread_local CurrentDevice current_device;

std::uint64_t next_serial = 1;

}  // namespace

FakeDevices* FakeDevices::current = nullptr;

FakeDevices::FakeDevices(std::uint64_t seed, int devices)
    : random_(seed), serial_(next_serial++), devices_(devices), eagerness_(random_.between(0, 4)) {
  if (current != nullptr) throw std::logic_error("one FakeDevices at a time");
  current = this;
  for (int device = 0; device < devices; ++device) {
    streams_.push_back(std::make_unique<Stream>());
    streams_.back()->device = device;
    streams_.back()->is_trainers = true;
    peak_device_bytes_[device] = 0;
  }
}

FakeDevices::~FakeDevices() {
  current = nullptr;
  for (const auto& [_, region] : regions_) munmap(region.mapped, region.mapped_bytes);
}

// --- memory

std::byte* FakeDevices::map(Memory kind, int device, std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  // The run-time aligns pinned memory less than pages: so does this.
  const std::size_t offset = kind == Memory::pinned ? 512 : 0;
  const std::size_t whole = (bytes + offset + page - 1) / page * page;
  void* const mapped = mmap(nullptr, whole + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  std::byte* const memory = static_cast<std::byte*>(mapped) + page + offset;
  if (kind == Memory::pinned) mprotect(static_cast<std::byte*>(mapped) + page, whole, PROT_READ | PROT_WRITE);
  regions_[memory] = {kind, device, bytes, static_cast<std::byte*>(mapped), whole + 2 * page};
  if (kind == Memory::pinned) {
    pinned_bytes_ += bytes;
    peak_pinned_bytes_ = std::max(peak_pinned_bytes_, pinned_bytes_);
  } else if (kind == Memory::device) {
    device_bytes_[device] += bytes;
    peak_device_bytes_[device] = std::max(peak_device_bytes_[device], device_bytes_[device]);
  }
  return memory;
}

void FakeDevices::unmap(std::byte* memory, const char* call) {
  const auto found = regions_.find(memory);
  if (found == regions_.end() || found->second.kind == Memory::tensor) {
    return fault(std::string(call) + " of what is no memory of its kind");
  }
  const Region& region = found->second;
  if (gpu_direct_memory_.contains(memory)) fault(std::string(call) + " of memory that is still registered");
  if (!is_unused(region, memory)) {
    return fault(std::string(call) + " of memory that an operation may still use");  // and stays, as it does
  }
  (region.kind == Memory::pinned ? pinned_bytes_ : device_bytes_[region.device]) -= region.bytes;
  std::erase_if(past_, [&](const Past& past) {
    return overlap(past.access.begin, past.access.bytes, memory, region.bytes);
  });
  munmap(region.mapped, region.mapped_bytes);
  regions_.erase(found);
}

/// Everything in the memory must be over, and the host must know it.
bool FakeDevices::is_unused(const Region& region, const std::byte* memory) const {
  return is_dead_ || std::all_of(past_.begin(), past_.end(), [&](const Past& past) {
           if (!overlap(past.access.begin, past.access.bytes, memory, region.bytes)) return true;
           const auto known = host_knows_.find(past.stream);
           return known != host_knows_.end() && known->second >= past.number;
         });
}

const FakeDevices::Region* FakeDevices::region_of(const std::byte* address) const {
  auto after = regions_.upper_bound(address);
  if (after == regions_.begin()) return nullptr;
  const auto& [begin, region] = *--after;
  return address < begin + region.bytes ? &region : nullptr;
}

std::byte* FakeDevices::tensor_memory(int device, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  used_devices_.insert(device);
  return map(Memory::tensor, device, std::max<std::size_t>(1, bytes));
}

std::byte* FakeDevices::pinned_memory(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  return map(Memory::pinned, -1, std::max<std::size_t>(1, bytes));
}

void FakeDevices::give_back(std::byte* pinned) {
  const std::lock_guard lock(mutex_);
  unmap(pinned, "give_back");
}

void FakeDevices::open_memory() {
  const std::lock_guard lock(mutex_);
  for (const auto& stream : streams_) finish(*stream, stream->issued);
  for (const auto& [_, region] : regions_) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    mprotect(region.mapped + page, region.mapped_bytes - 2 * page, PROT_READ | PROT_WRITE);
  }
}

// --- streams

void FakeDevices::set_device_here(int device) { current_device = {serial_, device}; }

int FakeDevices::device_here() const { return current_device.serial == serial_ ? current_device.device : 0; }

/// A call that brings a context into being must not do so where no tensor is, nor change the caller's thread.
void FakeDevices::expect_used(const char* call, int device) {
  if (std::this_thread::get_id() == callers_thread_) fault(std::string(call) + " on the caller's thread");
  if (!is_dead_ && !used_devices_.contains(device))
    fault(std::string(call) + " on a device that holds no tensor");
}

FakeDevices::Stream* FakeDevices::find(DeviceStream stream) {
  if (stream == nullptr) return streams_[static_cast<std::size_t>(device_here())].get();
  for (const auto& one : streams_) {
    if (one.get() == stream) return one.get();
  }
  fault("a call with a stream that is not there");
  return nullptr;
}

FakeDevices::Event* FakeDevices::find(DeviceEvent event, const char* call) {
  for (const auto& one : events_) {
    if (one.get() == event) return one.get();
  }
  fault(std::string(call) + " of an event that is not there");
  return nullptr;
}

void FakeDevices::merge(Clock& into, const Clock& from) {
  for (const auto& [stream, number] : from) into[stream] = std::max(into[stream], number);
}

DeviceStream FakeDevices::stream_that_writes(int device, std::byte* memory, std::vector<std::uint8_t> bytes) {
  const std::lock_guard lock(mutex_);
  Stream* stream = streams_[static_cast<std::size_t>(device)].get();
  Operation write;
  write.accesses = {{memory, bytes.size(), true}};
  write.run = [memory, bytes = std::move(bytes)] {
    std::copy(bytes.begin(), bytes.end(), reinterpret_cast<std::uint8_t*>(memory));
  };
  add(*stream, std::move(write));
  return stream;
}

DeviceStream FakeDevices::stream_that_fills(int device, std::byte* memory, std::size_t bytes,
                                            std::uint8_t value) {
  return stream_that_writes(device, memory, std::vector<std::uint8_t>(bytes, value));
}

/// Every operation on staging, and every one of the trainer's, must come after those before it that it would
/// disturb. Among themselves kernels may write to one tensor in any order: no two write the same element.
void FakeDevices::expect_order(Stream& stream, const Access& access) {
  const Region* region = region_of(access.begin);
  if (region == nullptr) return fault("an operation on memory that is not there");
  for (const Past& past : past_) {
    if (past.stream == &stream || (!past.access.writes && !access.writes)) continue;
    if (!overlap(past.access.begin, past.access.bytes, access.begin, access.bytes)) continue;
    if (region->kind == Memory::tensor && !past.stream->is_trainers) continue;
    const auto known = stream.knows.find(past.stream);
    if (known == stream.knows.end() || known->second < past.number) {
      return fault(region->kind == Memory::tensor
                       ? "a tensor is used before the trainer's stream is done with it"
                       : "staging is used again before what uses it is done");
    }
  }
}

/// What the host knows to be over disturbs nobody.
void FakeDevices::forget_what_is_known() {
  std::erase_if(past_, [&](const Past& past) {
    const auto known = host_knows_.find(past.stream);
    return known != host_knows_.end() && known->second >= past.number;
  });
}

void FakeDevices::add(Stream& stream, Operation operation) {
  merge(stream.knows, host_knows_);
  if (past_.size() > 1000) forget_what_is_known();
  const std::uint64_t number = ++stream.issued;
  stream.knows[&stream] = number;
  for (const Access& access : operation.accesses) {
    expect_order(stream, access);
    past_.push_back({access, &stream, number});
  }
  stream.pending.push_back(std::move(operation));
}

bool FakeDevices::is_blocked(const Stream& stream) const {
  const Operation& next = stream.pending.front();
  if (next.after == nullptr) return false;
  const bool is_there =
      std::any_of(streams_.begin(), streams_.end(), [&](const auto& one) { return one.get() == next.after; });
  return is_there && next.after->done < next.after_number;
}

void FakeDevices::do_next(Stream& stream) {
  const Operation operation = std::move(stream.pending.front());
  stream.pending.pop_front();
  ++stream.done;
  if (!operation.accesses.empty() && !stream.is_trainers) {
    if (++operations_done_ == failing_operation_) has_failed_ = is_dead_ = true;
  }
  if (is_dead_ && !stream.is_trainers) return;
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const auto protect = [&](int protection) {
    for (const Access& access : operation.accesses) {
      const Region* region = region_of(access.begin);
      if (region == nullptr || region->kind == Memory::pinned) continue;
      mprotect(region->mapped + page, region->mapped_bytes - 2 * page, protection);
    }
  };
  protect(PROT_READ | PROT_WRITE);
  operation.run();
  protect(PROT_NONE);
}

void FakeDevices::do_something() {
  std::vector<Stream*> able;
  for (const auto& stream : streams_) {
    if (!stream->pending.empty() && !is_blocked(*stream)) able.push_back(stream.get());
  }
  if (!able.empty()) do_next(*random_.one_of(able));
}

/// Does what has to be done for so many of the stream's operations to be over, and nothing else.
void FakeDevices::finish(const Stream& stream, std::uint64_t number) {
  Stream& own = const_cast<Stream&>(stream);
  while (own.done < number) {
    if (is_blocked(own)) finish(*own.pending.front().after, own.pending.front().after_number);
    do_next(own);
  }
}

DeviceStatus FakeDevices::copy(void* to, const void* from, std::size_t bytes, DeviceStream handle,
                               bool to_device) {
  Stream* stream = find(handle);
  if (stream == nullptr) return 400;
  auto* const target = static_cast<std::byte*>(to);
  const auto* const source = static_cast<const std::byte*>(from);
  const Region* host = region_of(to_device ? source : target);
  const Region* there = region_of(to_device ? target : source);
  if (host == nullptr || host->kind != Memory::pinned)
    fault(to_device ? "a copy from memory that is not pinned" : "a copy to memory that is not pinned");
  if (there == nullptr || there->kind == Memory::pinned)
    fault(to_device ? "a copy to memory of no device" : "a copy from memory of no device");
  if (there != nullptr && there->device != stream->device) fault("a copy with another device's memory");
  Operation copy;
  copy.accesses = {{source, bytes, false}, {target, bytes, true}};
  if (to_device) {
    copy.run = [=, this, seen = std::vector<std::byte>(source, source + bytes)] {
      if (std::memcmp(source, seen.data(), bytes) != 0)
        fault("pinned memory was changed before its copy was done");
      std::memcpy(target, source, bytes);
    };
  } else {
    // Nobody may look before it is done: who does finds this.
    if (host != nullptr && host->kind == Memory::pinned) std::memset(target, 0xDB, bytes);
    copy.run = [=] { std::memcpy(target, source, bytes); };
  }
  add(*stream, std::move(copy));
  return 0;
}

/// From the first byte to the last of what a kernel touches. Strides are in bytes.
FakeDevices::Access FakeDevices::reach(const void* first, std::int64_t rows, std::int64_t row_stride,
                                       std::int64_t columns, std::int64_t column_stride,
                                       std::int64_t element_bytes, bool writes) const {
  const std::int64_t down = (rows - 1) * row_stride;
  const std::int64_t across = (columns - 1) * column_stride;
  return {static_cast<const std::byte*>(first) + std::min<std::int64_t>(0, down) +
              std::min<std::int64_t>(0, across),
          static_cast<std::size_t>(std::abs(down) + std::abs(across) + element_bytes), writes};
}

void FakeDevices::expect_on_device(const Stream& stream, const void* address) {
  const Region* region = region_of(static_cast<const std::byte*>(address));
  if (region == nullptr || region->device != stream.device) fault("a kernel on another device's memory");
}

DeviceStatus FakeDevices::place(std::span<const cuda::Placing> placings, DeviceStream handle) {
  Stream* stream = find(handle);
  if (stream == nullptr) return 400;
  if (stream->device != device_here()) fault("a launch while another device is current");
  for (const cuda::Placing& placing : placings) {
    expect_on_device(*stream, placing.source.data);
    expect_on_device(*stream, placing.destination.data);
  }
  for (const cuda::Launch& launch : cuda::launches_for(placings)) {
    Operation kernels;
    for (std::uint32_t i = 0; i < launch.batch.count; ++i) {
      const cuda::PlacedTile& tile = launch.batch.tiles[i];
      kernels.accesses.push_back(reach(tile.source, tile.rows, tile.source_row_stride, tile.columns,
                                       tile.source_bytes, tile.source_bytes, false));
      if (tile.scales != nullptr) kernels.accesses.push_back({tile.scales, 1, false});
      kernels.accesses.push_back(reach(tile.destination, tile.rows, tile.row_stride, tile.columns,
                                       tile.column_stride, launch.element_bytes, true));
    }
    kernels.run = [launch] { cuda::run(launch); };
    add(*stream, std::move(kernels));
  }
  return 0;
}

DeviceStatus FakeDevices::encode(std::span<const cuda::TileToEncode> encodings, DeviceStream handle) {
  Stream* stream = find(handle);
  if (stream == nullptr) return 400;
  if (stream->device != device_here()) fault("a launch while another device is current");
  for (const cuda::EncodingLaunch& launch : cuda::encoding_launches_for(encodings)) {
    Operation kernels;
    for (std::uint32_t i = 0; i < launch.batch.count; ++i) {
      const cuda::EncodedPart& part = launch.batch.tiles[i];
      const std::int64_t blocks = (part.first_column + part.columns + 31) / 32;
      kernels.accesses.push_back(reach(part.values, part.rows, part.row_stride, part.columns,
                                       part.column_stride, bytes_of(part.dtype), false));
      kernels.accesses.push_back(reach(part.scales, part.rows, part.scale_row_stride, blocks, 1, 1, true));
      if (part.elements != nullptr) {
        kernels.accesses.push_back(
            reach(part.elements, part.rows, part.element_row_stride, part.columns, 1, 1, true));
      }
      for (const std::uint8_t* shared : {part.first_scales, part.last_scales}) {
        if (shared != nullptr) kernels.accesses.push_back(reach(shared, part.rows, 1, 1, 1, 1, false));
      }
    }
    for (const Access& access : kernels.accesses) expect_on_device(*stream, access.begin);
    kernels.run = [launch] { cuda::run(launch); };
    add(*stream, std::move(kernels));
  }
  return 0;
}

// --- failures and faults

void FakeDevices::fail(const std::string& call, int which, DeviceStatus status) {
  failing_call_ = call;
  failing_number_ = which;
  failing_status_ = status;
}

std::size_t FakeDevices::peak_device_bytes() const {
  const std::lock_guard lock(mutex_);
  std::size_t most = 0;
  for (const auto& [_, bytes] : peak_device_bytes_) most = std::max(most, bytes);
  return most;
}

int FakeDevices::count(const std::string& call) const {
  const std::lock_guard lock(mutex_);
  const auto found = counts_.find(call);
  return found == counts_.end() ? 0 : found->second;
}

std::vector<std::string> FakeDevices::faults() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> all = faults_;
  for (const auto& stream : streams_) {
    if (stream->is_trainers) continue;
    all.emplace_back("a stream is left behind");
    if (!stream->pending.empty()) all.emplace_back("work is left pending");
  }
  if (gpu_direct_drivers_ != 0) all.emplace_back("the driver of GPUDirect Storage is left open");
  if (!gpu_direct_files_.empty()) all.emplace_back("files are left registered");
  if (!gpu_direct_memory_.empty()) all.emplace_back("memory is left registered");
  if (!events_.empty()) all.emplace_back("events are left behind");
  for (const auto& [_, region] : regions_) {
    if (region.kind == Memory::pinned) all.emplace_back("pinned memory is left behind");
    if (region.kind == Memory::device) all.emplace_back("device memory is left behind");
  }
  return all;
}

}  // namespace shardwright
