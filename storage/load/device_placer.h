#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "planner/load/load_plan.h"
#include "planner/names/catalog.h"
#include "planner/names/tensor_spec.h"
#include "storage/device/device_resources.h"
#include "storage/load/task_reader.h"
#include "storage/load/written_parts.h"

namespace shardwright {

/// Brings what has been staged to the tensors of one device, and decodes it there.
///
/// Staging on the device is a few blocks, each with a stream of its own, which take turns. A task's bytes are
/// copied into the block whose turn it is, behind those of the tasks before; when the block is full, kernels
/// decode and place all of it, as few launches as its tiles allow, and the turn passes on. What happens to a
/// block happens in the order of its stream, so it can be filled again without waiting for anything, while
/// the kernels of one run beside the copies into the next. What needs no kernel is copied to its place at
/// once.
///
/// Thread-safe until one of the engine's threads calls finish() or abandon(). All functions throw
/// Error(device), naming tensor and call. Device, plan, catalog and specs must outlive it.
class DevicePlacer {
 public:
  static constexpr std::size_t block_count = 4;

  /// The device must be open by the first submit().
  DevicePlacer(DeviceResources& device, std::size_t block_bytes, const LoadPlan& plan, const Catalog& catalog,
               const std::vector<TensorSpec>& specs, WrittenParts& written);
  DevicePlacer(const DevicePlacer&) = delete;
  DevicePlacer& operator=(const DevicePlacer&) = delete;

  /// Begins to copy a part of a transfer from pinned memory, or to place one that is on the device already.
  /// The memory, `bytes` from the first element to the end of its scales, or of its elements if it has none,
  /// must stay as it is until the event that is returned has happened. If this throws, nothing is under way
  /// there.
  /// `scales_apart`: bytes of scales that lie elsewhere; `bytes` are then those of the elements alone.
  DeviceEvent submit(std::uint32_t transfer, const BoxInMemory& part, std::size_t bytes, bool is_on_device,
                     std::size_t scales_apart = 0);

  /// Begins to fill a destination with zeros. Its memory is no transfer's.
  void fill_with_zeros(std::uint32_t destination);

  /// Whether the event has happened.
  bool has_happened(DeviceEvent event, std::uint32_t transfer) const;

  /// Waits until the event has happened. If this throws, nothing is under way any more.
  void wait_for(DeviceEvent event, std::uint32_t transfer);

  /// Gives the event back, for another submit().
  void give_back(DeviceEvent event);

  /// Places what is left, and waits until everything is done.
  void finish();

  /// Begins nothing more, and waits for what has begun. For a load that has failed. Throws nothing.
  void abandon() noexcept;

  std::uint64_t bytes_copied() const { return bytes_copied_; }
  std::int64_t batches() const { return batches_; }

 private:
  struct Block {
    DeviceStream stream = nullptr;
    std::byte* memory = nullptr;
    std::size_t used = 0;
    std::vector<cuda::Placing> placings;                        // of what it holds
    std::vector<std::pair<std::uint32_t, std::int64_t>> tasks;  // their transfers, and elements to write
    std::uint32_t last_transfer = 0;                            // that its stream got something of
  };

  void expect(DeviceStatus status, const char* call, std::uint32_t transfer) const;
  std::string name_of_transfer(std::uint32_t transfer) const;
  DeviceEvent unused_event(std::uint32_t transfer);
  Block& block_with_room(std::size_t bytes, std::uint32_t transfer);
  void open_stream(Block& block, std::uint32_t transfer);
  void add(Block& block, std::uint32_t transfer, const BoxInMemory& part);
  void place(Block& block);
  void launch(Block& block);
  void end_writing();

  DeviceResources& device_;
  const DeviceCalls& calls_;
  const std::size_t block_bytes_;
  const LoadPlan& plan_;
  const Catalog& catalog_;
  const std::vector<TensorSpec>& specs_;
  WrittenParts& written_;

  std::mutex mutex_;                           // guards what follows
  std::array<Block, block_count + 1> blocks_;  // the last without memory: for what is on the device already
  std::size_t turn_ = 0;
  std::vector<DeviceEvent> unused_events_;
  std::vector<std::int64_t>
      in_streams_;  // elements that are written once the streams are done, by destination
  std::uint64_t bytes_copied_ = 0;
  std::int64_t batches_ = 0;
};

}  // namespace shardwright
