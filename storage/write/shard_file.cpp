#include "storage/write/shard_file.h"

#include <algorithm>
#include <map>
#include <utility>

#include "planner/error.h"
#include "storage/device/gather_on_device.h"
#include "storage/device/staging.h"
#include "storage/files/printable.h"
#include "storage/format/checksum.h"
#include "storage/format/safetensors.h"
#include "storage/format/safetensors_chunks.h"
#include "storage/format/torch_stream.h"

namespace shardwright {

namespace {

std::string header_of(std::vector<SourceTensor>& chunks) {
  std::map<std::string, std::string> metadata{{"format", "pt"}, {"DCP_VERSION", "1.0"}};
  metadata.emplace("DCP_SHARDING_INFO", chunk_offsets_text(chunks));
  return make_safetensors_header(chunks, metadata);
}

std::vector<std::string> names_of(const std::vector<SourceTensor>& chunks) {
  std::vector<std::string> names;
  for (const SourceTensor& chunk : chunks) names.push_back(chunk.name);
  return names;
}

std::vector<StoredBytes> places_of(const std::vector<SourceTensor>& chunks) {
  std::vector<StoredBytes> places;
  for (const SourceTensor& chunk : chunks) places.push_back({chunk.begin, chunk.end, {}});
  return places;
}

/// One behind the other; those with headers begin where torch streams do.
std::vector<StoredBytes> places_of(const std::vector<RowsInFile>& items) {
  std::vector<StoredBytes> places;
  std::uint64_t filled = 0;
  for (const RowsInFile& item : items) {
    if (!item.header.empty()) filled += -filled % torch_stream_alignment;
    const std::uint64_t begin = filled + item.header.size();
    filled = begin + item.rows.bytes;
    places.push_back({begin, filled, {}});
  }
  return places;
}

std::vector<RowGeometry> geometries_of(const std::vector<SourceTensor>& chunks) {
  std::vector<RowGeometry> geometries;
  for (const SourceTensor& chunk : chunks) geometries.push_back(rows_of(chunk));
  return geometries;
}

}  // namespace

/// What has a checksum of its own.
struct ShardFile::Block {
  std::size_t item;
  const TensorInMemory* tensor;
  std::uint64_t number;  // in the item
  std::uint64_t begin;   // byte of the item
  std::uint64_t bytes;
};

ShardFile::ShardFile(const std::filesystem::path& path, std::vector<SourceTensor> chunks, bool flush,
                     SendPart send)
    : header_(header_of(chunks)),
      names_(names_of(chunks)),
      items_(places_of(chunks)),
      geometries_(geometries_of(chunks)),
      size_(items_.empty() ? header_.size() : items_.back().end) {
  open(path, flush, std::move(send));
  write_bytes(0, reinterpret_cast<const std::byte*>(header_.data()), header_.size(), "the header");
}

ShardFile::ShardFile(const std::filesystem::path& path, std::vector<RowsInFile> items, bool flush,
                     SendPart send)
    : items_(places_of(items)), size_(items_.empty() ? 0 : items_.back().end) {
  for (std::size_t i = 0; i < items.size(); ++i) {
    RowsInFile& item = items[i];
    // With what lies between the item before and it, so that every byte of the file is written.
    const std::uint64_t padding = items_[i].begin - item.header.size() - (i == 0 ? 0 : items_[i - 1].end);
    names_.push_back(std::move(item.name));
    geometries_.push_back(item.rows);
    item_headers_.push_back(std::string(padding, '\0') + item.header);
  }
  open(path, flush, std::move(send));
}

void ShardFile::open(const std::filesystem::path& path, bool flush, SendPart send) {
  if (send != nullptr) {
    upload_.emplace(path.filename().string(), size_, std::move(send));
  } else {
    file_.emplace(path, size_, flush);
  }
}

void ShardFile::finish() {
  if (upload_) upload_->finish();
  if (file_) file_->finish();
}

std::vector<ShardFile::Block> ShardFile::blocks_of(std::span<const std::size_t> items,
                                                   std::span<const TensorInMemory> tensors) {
  std::vector<Block> blocks;
  for (std::size_t t = 0; t < items.size(); ++t) {
    StoredBytes& item = items_.at(items[t]);
    const TensorInMemory& tensor = tensors[t];
    const std::uint64_t bytes = item.end - item.begin;
    if (static_cast<std::uint64_t>(volume(tensor.shape)) * tensor.element_bytes != bytes) {
      throw Error(ErrorKind::argument, names_[items[t]] + ": expected " + std::to_string(bytes) +
                                           " bytes, as was planned, found a tensor of shape " +
                                           to_string(tensor.shape) + " with elements of " +
                                           std::to_string(tensor.element_bytes) + " bytes");
    }
    item.checksums.assign(checksum_blocks(bytes), 0);
    const std::uint64_t count = std::max<std::uint64_t>(1, item.checksums.size());  // one has the header
    for (std::uint64_t number = 0; number < count; ++number) {
      const std::uint64_t begin = number * checksum_block_bytes;
      blocks.push_back({items[t], &tensor, number, begin, std::min(checksum_block_bytes, bytes - begin)});
    }
  }
  // In the order of the file, which is what sending needs least memory for.
  std::sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) {
    return a.item != b.item ? a.item < b.item : a.number < b.number;
  });
  return blocks;
}

void ShardFile::write_block(const Block& block, const std::byte* bytes) {
  StoredBytes& item = items_[block.item];
  if (block.number == 0 && !item_headers_.empty()) {
    const std::string& header = item_headers_[block.item];
    write_bytes(item.begin - header.size(), reinterpret_cast<const std::byte*>(header.data()), header.size(),
                "the header of " + in_quotes(names_[block.item]));
  }
  if (block.bytes == 0) return;
  // Hashed first: what is then written comes from the processor's cache.
  item.checksums[block.number] = sum_of_block(geometries_[block.item], {}, bytes, block.begin, block.bytes);
  write_bytes(item.begin + block.begin, bytes, block.bytes, in_quotes(names_[block.item]));
}

void ShardFile::write_bytes(std::uint64_t offset, const std::byte* bytes, std::uint64_t count,
                            const std::string& what) {
  if (upload_) {
    upload_->write(offset, bytes, count);
  } else {
    file_->write(offset, bytes, count, what);
  }
}

GatherFigures ShardFile::write(std::span<const std::size_t> items, std::span<const TensorInMemory> tensors,
                               int threads, const DeviceOptions& options) {
  const std::vector<Block> blocks = blocks_of(items, tensors);
  std::vector<TensorOnDevice> on_devices;
  for (const Block& block : blocks) {
    const int device = block.tensor->cuda_device;
    if (device >= 0 && block.number == 0 && block.bytes > 0)
      on_devices.push_back({names_[block.item], device});
  }
  DevicesInUse devices(on_devices, options);
  const GatherBounds bounds =
      bounds_for_blocks(threads, blocks.size(), checksum_block_bytes, devices, options);
  std::vector<Staging> staging(static_cast<std::size_t>(bounds.threads));
  GatherFigures figures;
  devices.run([&] {
    figures = gather_on_threads(
        blocks.size(), devices, bounds,
        [&](std::size_t index, std::size_t thread, DeviceGatherers& gatherers) {
          const Block& block = blocks[index];
          const TensorInMemory& tensor = *block.tensor;
          if (block.bytes == 0) {
            write_block(block, nullptr);
          } else if (tensor.cuda_device >= 0) {
            DeviceGatherer& gatherer = gatherers.of(tensor.cuda_device);
            gatherer.begin(block.bytes, names_[block.item],
                           [this, &block](const std::byte* bytes) { write_block(block, bytes); });
            gather(tensor, block.begin, block.bytes, gatherer);
          } else if (is_contiguous(tensor)) {
            write_block(block, tensor.data + block.begin);
          } else {
            std::byte* gathered = staging[thread].room_for(block.bytes);
            gather(tensor, block.begin, block.bytes, gathered);
            write_block(block, gathered);
          }
        });
  });
  return figures;
}

std::uint64_t ShardFile::header_checksum() const { return checksum_of(header_.data(), header_.size()); }

}  // namespace shardwright
