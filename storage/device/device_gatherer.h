#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/encode.h"
#include "storage/device/device_resources.h"
#include "storage/device/staging.h"

namespace shardwright {

/// Brings values from the tensors of one device to CPU memory, for one thread: the way of DevicePlacer, the
/// other way round.
///
/// What is asked for is parts, each a number of bytes that somebody waits for. Kernels encode and regroup
/// them in a block of device memory, which is copied to pinned memory; what lies on the device as it is
/// wanted is copied from there. Parts are collected until the pinned memory is full; then all of them are
/// done at once, as few launches and copies as they allow. There are two such batches, each with memory and a
/// stream of its own: while one is on its way, what has come with the other is handed out.
///
/// All functions throw Error(device), naming call and part, and pass on what those throw who get the parts.
/// After that it can only be destroyed, which waits until nothing is under way any more.
class DeviceGatherer {
 public:
  static constexpr std::size_t batch_count = 2;

  /// Gets a part's bytes, on the thread that calls the gatherer; they are there until it returns.
  using Receive = std::function<void(const std::byte* bytes)>;

  /// `batch_bytes` of pinned memory and `block_bytes` of the device's are taken for each batch. The device,
  /// which has to be open, must outlive it.
  DeviceGatherer(DeviceResources& device, std::size_t batch_bytes, std::size_t block_bytes)
      : device_(device), batch_bytes_(batch_bytes), block_bytes_(block_bytes) {}
  DeviceGatherer(const DeviceGatherer&) = delete;
  DeviceGatherer& operator=(const DeviceGatherer&) = delete;
  ~DeviceGatherer();

  /// What a stretch() may have at most.
  std::size_t block_bytes() const { return block_bytes_; }

  /// Begins a part of so many bytes, whose stretches follow in their order. Hands out earlier ones. `name`
  /// says in messages what it is.
  void begin(std::size_t bytes, const std::string& name, const Receive& receive) {
    begin(bytes, 0, name, receive);
  }

  /// Adds the next bytes of the part, as they are on the device.
  void copy(const std::byte* from, std::size_t bytes);

  /// Returns where kernels are to write the next bytes of the part: those that place() is given before the
  /// next stretch.
  std::byte* stretch(std::size_t bytes);
  void place(const cuda::Placing& placing);

  /// Adds a whole part: the tile's elements as encode() of kernels/encode.h writes them, row behind row, and
  /// behind them the scales of each row. The shared scales are in CPU memory, and needed until this returns.
  /// Beside elements and scales it takes 2 bytes a row of batch and block, and up to `slack`.
  void encode(const ValueTile& values, std::int64_t first_column, const SharedScales& shared,
              const std::string& name, const Receive& receive);

  /// Adds a whole part of scales alone, without elements.
  void find_scales(const ValueTile& values, std::int64_t first_column, const std::string& name,
                   const Receive& receive);

  static constexpr std::size_t slack = 256;

  /// Hands out what is left, and gives the pinned memory back: returns how much that was.
  std::size_t finish();

  std::uint64_t bytes_copied() const { return bytes_copied_; }
  std::int64_t batches() const { return batches_done_; }

 private:
  struct Part {
    std::size_t offset;  // in the pinned memory
    std::string name;
    Receive receive;
  };
  struct Copy {
    const std::byte* from;
    std::byte* to;
    std::size_t bytes;
  };
  struct Batch {
    DeviceStream stream = nullptr;
    DeviceEvent arrived = nullptr;
    std::byte* block = nullptr;
    Staging pinned;
    std::size_t used = 0;        // of the pinned memory
    std::size_t block_used = 0;  // by what has not been launched
    std::byte* next = nullptr;   // where the part's next stretch goes
    std::byte* next_upload = nullptr;
    std::vector<Part> parts;
    // What has not been launched:
    std::vector<Copy> to_device;
    std::vector<cuda::Placing> placings;
    std::vector<cuda::TileToEncode> encodings;
    std::vector<Copy> from_block;
    std::vector<Copy> from_tensors;
    bool is_pending = false;  // its stream has something to do

    explicit Batch(const DeviceCalls& calls) : pinned(false, &calls) {}
  };

  Batch& filling() { return batches_[turn_]; }
  void begin(std::size_t bytes, std::size_t uploads, const std::string& name, const Receive& receive);
  void add_encoding(cuda::TileToEncode encoding, std::size_t elements, const std::string& name,
                    const Receive& receive);
  const std::uint8_t* upload(const std::uint8_t* bytes, std::size_t count);
  void make_room_in_block(std::size_t bytes);
  std::byte* take_of_block(std::size_t bytes);
  void launch_kernels(Batch& batch);
  void launch(Batch& batch);
  void send(Batch& batch);
  void receive(Batch& batch);

  DeviceResources& device_;
  const std::size_t batch_bytes_;
  const std::size_t block_bytes_;
  std::array<Batch, batch_count> batches_{Batch(device_.calls()), Batch(device_.calls())};
  std::size_t turn_ = 0;
  std::string last_name_;
  std::uint64_t bytes_copied_ = 0;
  std::int64_t batches_done_ = 0;
};

}  // namespace shardwright
