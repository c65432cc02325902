#include "storage/device/device_gatherer.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "storage/rounded_up.h"

namespace shardwright {
namespace {

/// Where parts begin: kernels write chunks of 16 bytes at once where they are aligned.
constexpr std::size_t alignment = 64;
static_assert(DeviceGatherer::slack >= 3 * alignment);

/// Tiles that wait to be launched.
constexpr std::size_t most_tiles = 1024;

std::size_t aligned(std::size_t bytes) { return rounded_up(bytes, alignment); }

std::size_t size_of(std::int64_t count) { return static_cast<std::size_t>(count); }

}  // namespace

DeviceGatherer::~DeviceGatherer() {
  for (const Batch& batch : batches_) {
    if (batch.is_pending) device_.calls().stream_synchronize(batch.stream);
  }
}

void DeviceGatherer::begin(std::size_t bytes, std::size_t uploads, const std::string& name,
                           const Receive& receive_part) {
  last_name_ = name;
  const std::size_t needed = aligned(bytes) + uploads;
  if (!filling().parts.empty() && filling().used + needed > batch_bytes_) {
    send(filling());
    turn_ = 1 - turn_;
    receive(filling());
  }
  Batch& batch = filling();
  if (batch.stream == nullptr) {
    batch.stream = device_.stream(name);
    batch.is_pending = true;  // it waits for the trainer's
  }
  if (batch.arrived == nullptr) batch.arrived = device_.event(name);
  device_.use();
  std::byte* const pinned = batch.pinned.room_for(std::max(batch_bytes_, needed), name);
  batch.parts.push_back({batch.used, name, receive_part});
  batch.next = pinned + batch.used;
  batch.next_upload = batch.next + aligned(bytes);
  batch.used += needed;
}

void DeviceGatherer::copy(const std::byte* from, std::size_t bytes) {
  Batch& batch = filling();
  batch.from_tensors.push_back({from, batch.next, bytes});
  batch.next += bytes;
}

std::byte* DeviceGatherer::stretch(std::size_t bytes) {
  make_room_in_block(bytes);
  Batch& batch = filling();
  std::byte* const place = take_of_block(bytes);
  // What lies in the block as in the pinned memory is copied at once, and what little lies between it.
  Copy* const last = batch.from_block.empty() ? nullptr : &batch.from_block.back();
  if (last != nullptr && place - last->from == batch.next - last->to &&
      place < last->from + last->bytes + alignment) {
    last->bytes = static_cast<std::size_t>(place - last->from) + bytes;
  } else {
    batch.from_block.push_back({place, batch.next, bytes});
  }
  batch.next += bytes;
  return place;
}

void DeviceGatherer::place(const cuda::Placing& placing) {
  Batch& batch = filling();
  batch.placings.push_back(placing);
  if (batch.placings.size() >= most_tiles) launch_kernels(batch);
}

void DeviceGatherer::encode(const ValueTile& values, std::int64_t first_column, const SharedScales& shared,
                            const std::string& name, const Receive& receive_part) {
  add_encoding({values, first_column, shared, {}}, size_of(values.rows * values.columns), name, receive_part);
}

void DeviceGatherer::find_scales(const ValueTile& values, std::int64_t first_column, const std::string& name,
                                 const Receive& receive_part) {
  add_encoding({values, first_column, {}, {}}, 0, name, receive_part);
}

void DeviceGatherer::add_encoding(cuda::TileToEncode encoding, std::size_t elements, const std::string& name,
                                  const Receive& receive_part) {
  const auto rows = size_of(encoding.values.rows);
  const std::int64_t blocks =
      (encoding.first_column + encoding.values.columns + mxfp8_block_columns - 1) / mxfp8_block_columns;
  const std::size_t bytes = elements + rows * size_of(blocks);
  std::size_t uploads = 0;
  for (const std::uint8_t* scales : {encoding.shared.first, encoding.shared.last}) {
    if (scales != nullptr) uploads += aligned(rows);
  }
  begin(bytes, uploads, name, receive_part);
  make_room_in_block(aligned(bytes) + uploads);
  auto* const made = reinterpret_cast<std::uint8_t*>(stretch(bytes));
  encoding.shared = {upload(encoding.shared.first, rows), upload(encoding.shared.last, rows)};
  encoding.encoded = {elements > 0 ? made : nullptr, encoding.values.columns, made + elements, blocks};
  filling().encodings.push_back(encoding);
}

/// A copy on the device of bytes of the host, for the kernels of this part.
const std::uint8_t* DeviceGatherer::upload(const std::uint8_t* bytes, std::size_t count) {
  if (bytes == nullptr) return nullptr;
  Batch& batch = filling();
  std::memcpy(batch.next_upload, bytes, count);
  std::byte* const place = take_of_block(count);
  batch.to_device.push_back({batch.next_upload, place, count});
  batch.next_upload += aligned(count);
  return reinterpret_cast<const std::uint8_t*>(place);
}

void DeviceGatherer::make_room_in_block(std::size_t bytes) {
  if (aligned(bytes) > aligned(block_bytes_)) throw std::logic_error("a part is larger than its block");
  Batch& batch = filling();
  if (batch.block == nullptr) batch.block = device_.memory(aligned(block_bytes_), last_name_);
  if (batch.block_used + bytes > aligned(block_bytes_)) launch(batch);
}

std::byte* DeviceGatherer::take_of_block(std::size_t bytes) {
  Batch& batch = filling();
  std::byte* const place = batch.block + batch.block_used;
  batch.block_used += aligned(bytes);
  return place;
}

void DeviceGatherer::launch_kernels(Batch& batch) {
  const DeviceCalls& calls = device_.calls();
  device_.use();
  batch.is_pending = true;
  for (const Copy& copy : batch.to_device) {
    device_.expect(calls.copy_to_device(copy.to, copy.from, copy.bytes, batch.stream), "cudaMemcpyAsync",
                   last_name_);
  }
  batch.to_device.clear();
  if (!batch.placings.empty()) {
    device_.expect(calls.place(batch.placings, batch.stream), "launching a kernel", last_name_);
    batch.placings.clear();
  }
  if (!batch.encodings.empty()) {
    device_.expect(calls.encode(batch.encodings, batch.stream), "launching a kernel", last_name_);
    batch.encodings.clear();
  }
}

/// Begins all that has been collected. The block is free for what comes behind it in the stream.
void DeviceGatherer::launch(Batch& batch) {
  launch_kernels(batch);
  for (std::vector<Copy>* copies : {&batch.from_block, &batch.from_tensors}) {
    for (const Copy& copy : *copies) {
      device_.expect(device_.calls().copy_from_device(copy.to, copy.from, copy.bytes, batch.stream),
                     "cudaMemcpyAsync", last_name_);
      bytes_copied_ += copy.bytes;
    }
    copies->clear();
  }
  batch.block_used = 0;
}

void DeviceGatherer::send(Batch& batch) {
  launch(batch);
  device_.expect(device_.calls().event_record(batch.arrived, batch.stream), "cudaEventRecord", last_name_);
  ++batches_done_;
}

/// Waits for a batch that has been sent, if it has, and hands it out.
void DeviceGatherer::receive(Batch& batch) {
  if (batch.parts.empty()) return;
  // An error of anything that was done in its stream shows here at the latest.
  device_.expect(device_.calls().event_synchronize(batch.arrived), "cudaEventSynchronize",
                 batch.parts.back().name);
  batch.is_pending = false;
  const std::byte* const pinned = batch.pinned.room_for(0);
  for (const Part& part : batch.parts) part.receive(pinned + part.offset);
  batch.parts.clear();
  batch.used = 0;
}

std::size_t DeviceGatherer::finish() {
  if (!filling().parts.empty()) send(filling());
  for (std::size_t n = 0; n < batch_count; ++n) {
    turn_ = 1 - turn_;
    receive(filling());  // the earlier one first
  }
  std::size_t bytes = 0;
  for (Batch& batch : batches_) {
    bytes += batch.pinned.size();
    batch.pinned.close(last_name_);
  }
  return bytes;
}

}  // namespace shardwright
