#include "storage/load/device_placer.h"

#include <algorithm>
#include <new>

#include "storage/boxes/placing.h"
#include "storage/rounded_up.h"

namespace shardwright {
namespace {

/// Where a task begins in a block: kernels read chunks of 16 bytes at once where they are aligned.
constexpr std::size_t task_alignment = 64;

/// Tiles that wait for a block to be full; a tile takes a fraction of a microsecond to put into a launch.
constexpr std::size_t most_placings = 1024;

}  // namespace

DevicePlacer::DevicePlacer(DeviceResources& device, std::size_t block_bytes, const LoadPlan& plan,
                           const Catalog& catalog, const std::vector<TensorSpec>& specs,
                           WrittenParts& written)
    : device_(device),
      calls_(device.calls()),
      block_bytes_(block_bytes),
      plan_(plan),
      catalog_(catalog),
      specs_(specs),
      written_(written),
      in_streams_(specs.size()) {}

std::string DevicePlacer::name_of_transfer(std::uint32_t index) const {
  const Transfer& transfer = plan_.transfers[index];
  return specs_[transfer.destination].fqn + " (from " + catalog_.tensors[transfer.source].name + ")";
}

void DevicePlacer::expect(DeviceStatus status, const char* call, std::uint32_t transfer) const {
  if (status != device_status::success) device_.expect(status, call, name_of_transfer(transfer));
}

DeviceEvent DevicePlacer::unused_event(std::uint32_t transfer) {
  if (unused_events_.empty()) return device_.event(name_of_transfer(transfer));
  const DeviceEvent event = unused_events_.back();
  unused_events_.pop_back();
  return event;
}

void DevicePlacer::open_stream(Block& block, std::uint32_t transfer) {
  block.last_transfer = transfer;
  if (block.stream == nullptr) block.stream = device_.stream(name_of_transfer(transfer));
}

DevicePlacer::Block& DevicePlacer::block_with_room(std::size_t bytes, std::uint32_t transfer) {
  if (blocks_[turn_].used + bytes > block_bytes_ || blocks_[turn_].placings.size() >= most_placings) {
    launch(blocks_[turn_]);
  }
  Block& block = blocks_[turn_];
  open_stream(block, transfer);
  if (block.memory == nullptr) block.memory = device_.memory(block_bytes_, name_of_transfer(transfer));
  return block;
}

/// Adds what is to be placed of a transfer to what the block holds.
void DevicePlacer::add(Block& block, std::uint32_t index, const BoxInMemory& part) {
  const Transfer& transfer = plan_.transfers[index];
  for_each_tile(transfer, catalog_.tensors[transfer.source].dtype, part, specs_[transfer.destination],
                [&](const cuda::Placing& placing) { block.placings.push_back(placing); });
  block.tasks.emplace_back(index, volume(part.box.size));
}

DeviceEvent DevicePlacer::submit(std::uint32_t index, const BoxInMemory& staged, std::size_t bytes,
                                 bool is_on_device, std::size_t scales_apart) {
  const Transfer& transfer = plan_.transfers[index];
  const TensorSpec& spec = specs_[transfer.destination];
  const DType dtype = catalog_.tensors[transfer.source].dtype;
  const std::int64_t elements = volume(staged.box.size);

  const std::lock_guard lock(mutex_);
  device_.use();
  const DeviceEvent copied = unused_event(index);
  Block* block = &blocks_[is_on_device ? block_count : turn_];
  try {
    BoxInMemory part = staged;
    if (is_on_device) {
      open_stream(*block, index);
      add(*block, index, part);
      place(*block);
    } else if (std::byte* place = place_as_it_is(transfer, dtype, part.box, part.elements.strides, spec)) {
      open_stream(*block, index);
      written_.begin(transfer.destination, elements);
      expect(calls_.copy_to_device(place, part.elements.data, bytes, block->stream), "cudaMemcpyAsync",
             index);
      in_streams_[transfer.destination] += elements;
      bytes_copied_ += bytes;
    } else {
      const std::size_t scales_at = rounded_up(bytes, task_alignment);
      const std::size_t taken = scales_apart > 0 ? scales_at + scales_apart : bytes;
      block = &block_with_room(taken, index);
      std::byte* const in_block = block->memory + block->used;
      const auto copy = [&](std::byte* to, const std::byte* from, std::size_t count) {
        expect(calls_.copy_to_device(to, from, count, block->stream), "cudaMemcpyAsync", index);
      };
      copy(in_block, part.elements.data, bytes);
      if (scales_apart > 0) {
        copy(in_block + scales_at, part.scales.data, scales_apart);
        part.scales.data = in_block + scales_at;
      } else if (part.scales.data != nullptr) {
        part.scales.data = in_block + (part.scales.data - part.elements.data);
      }
      block->used += rounded_up(taken, task_alignment);
      part.elements.data = in_block;
      add(*block, index, part);
      bytes_copied_ += bytes + scales_apart;
    }
    expect(calls_.event_record(copied, block->stream), "cudaEventRecord", index);
  } catch (...) {
    if (block->stream != nullptr) calls_.stream_synchronize(block->stream);
    if (is_on_device) {  // what it holds is not for others to place
      block->placings.clear();
      block->tasks.clear();
    }
    unused_events_.push_back(copied);
    throw;
  }
  return copied;
}

void DevicePlacer::fill_with_zeros(std::uint32_t destination) {
  const TensorSpec& spec = specs_[destination];
  static constexpr std::byte zero[16]{};  // an element of any dtype
  const auto check = [&](DeviceStatus status, const char* call) { device_.expect(status, call, spec.fqn); };
  const std::lock_guard lock(mutex_);
  device_.use();
  const DeviceStream stream = device_.stream(spec.fqn);
  std::byte* const on_device = device_.memory(task_alignment, spec.fqn);
  std::vector<CopiedDimension> dimensions;
  for (std::size_t d = 0; d < spec.local_shape.size(); ++d)
    dimensions.push_back({spec.local_shape[d], 0, spec.local_strides[d]});
  std::vector<cuda::Placing> placings;
  for_each_tile(dimensions, spec.dtype, spec.dtype, on_device, static_cast<std::byte*>(spec.data),
                [&](const cuda::Placing& placing) { placings.push_back(placing); });
  check(calls_.copy_to_device(on_device, zero, sizeof zero, stream), "cudaMemcpyAsync");
  check(calls_.place(placings, stream), "launching a kernel");
  check(calls_.stream_synchronize(stream), "cudaStreamSynchronize");
}

bool DevicePlacer::has_happened(DeviceEvent event, std::uint32_t transfer) const {
  const DeviceStatus status = calls_.event_query(event);
  if (status == device_status::not_ready) return false;
  expect(status, "cudaEventQuery", transfer);
  return true;
}

void DevicePlacer::wait_for(DeviceEvent event, std::uint32_t transfer) {
  const DeviceStatus status = calls_.event_synchronize(event);
  if (status == device_status::success) return;
  const std::lock_guard lock(mutex_);
  for (const Block& block : blocks_) {
    if (block.stream != nullptr) calls_.stream_synchronize(block.stream);
  }
  expect(status, "cudaEventSynchronize", transfer);
}

void DevicePlacer::give_back(DeviceEvent event) {
  const std::lock_guard lock(mutex_);
  try {
    unused_events_.push_back(event);
  } catch (const std::bad_alloc&) {  // not used again: the device's resources give it back at the end
  }
}

void DevicePlacer::place(Block& block) {
  for (const auto& [transfer, elements] : block.tasks) {
    written_.begin(plan_.transfers[transfer].destination, elements);
  }
  expect(calls_.place(block.placings, block.stream), "launching a kernel", block.last_transfer);
  for (const auto& [transfer, elements] : block.tasks) {
    in_streams_[plan_.transfers[transfer].destination] += elements;
  }
  block.placings.clear();
  block.tasks.clear();
  ++batches_;
}

/// Places what the block holds, and passes the turn on.
void DevicePlacer::launch(Block& block) {
  if (block.placings.empty()) return;
  place(block);
  block.used = 0;
  turn_ = (turn_ + 1) % block_count;
}

/// All that has begun is known to be done.
void DevicePlacer::end_writing() {
  for (std::uint32_t d = 0; d < in_streams_.size(); ++d) written_.end(d, std::exchange(in_streams_[d], 0));
}

void DevicePlacer::finish() {
  const std::lock_guard lock(mutex_);
  device_.use();
  for (Block& block : blocks_) launch(block);
  for (const Block& block : blocks_) {
    if (block.stream == nullptr) continue;
    // An error of anything that was done in this stream shows here at the latest.
    expect(calls_.stream_synchronize(block.stream), "cudaStreamSynchronize", block.last_transfer);
  }
  blocks_ = {};  // the device gives back what they had, and nobody must look there then
  end_writing();
}

void DevicePlacer::abandon() noexcept {
  const std::lock_guard lock(mutex_);
  DeviceStatus status = device_.try_to_use();
  for (const Block& block : blocks_) {
    if (block.stream == nullptr) continue;
    const DeviceStatus of_stream = calls_.stream_synchronize(block.stream);
    if (status == device_status::success) status = of_stream;
  }
  if (status == device_status::success) end_writing();
}

}  // namespace shardwright
