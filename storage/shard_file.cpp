#include "storage/shard_file.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "planner/error.h"
#include "storage/checksum.h"
#include "storage/printable.h"
#include "storage/safetensors.h"
#include "storage/safetensors_chunks.h"
#include "storage/staging.h"
#include "storage/threads.h"

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

struct Block {
  std::size_t tensor;  // index into the tensors of the call
  std::uint64_t number;
};

}  // namespace

ShardFile::ShardFile(const std::filesystem::path& path, std::vector<SourceTensor> chunks, bool flush)
    : header_(header_of(chunks)),
      names_(names_of(chunks)),
      items_(places_of(chunks)),
      size_(items_.empty() ? header_.size() : items_.back().end),
      file_(path, size_, flush) {
  file_.write(0, reinterpret_cast<const std::byte*>(header_.data()), header_.size(), "the header");
}

ShardFile::ShardFile(const std::filesystem::path& path, const std::vector<std::uint64_t>& sizes,
                     std::vector<std::string> names, bool flush)
    : names_(std::move(names)),
      size_(std::accumulate(sizes.begin(), sizes.end(), std::uint64_t{0})),
      file_(path, size_, flush) {
  std::uint64_t filled = 0;
  for (const std::uint64_t size : sizes) {
    items_.push_back({filled, filled + size, {}});
    filled += size;
  }
}

void ShardFile::write(std::span<const std::size_t> items, std::span<const TensorInMemory> tensors,
                      int threads) {
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
    for (std::uint64_t number = 0; number < item.checksums.size(); ++number) blocks.push_back({t, number});
  }
  for_each_index(blocks.size(), threads, [&](std::size_t index) {
    const Block& block = blocks[index];
    StoredBytes& item = items_[items[block.tensor]];
    const TensorInMemory& tensor = tensors[block.tensor];
    const std::uint64_t begin = block.number * checksum_block_bytes;
    const std::uint64_t count = std::min(checksum_block_bytes, item.end - item.begin - begin);
    const std::byte* bytes = tensor.data + begin;
    Staging staging;
    if (!is_contiguous(tensor)) {
      std::byte* gathered = staging.room_for(count);
      gather(tensor, begin, count, gathered);
      bytes = gathered;
    }
    // Hashed first: what is then written comes from the processor's cache.
    item.checksums[block.number] = checksum_of(bytes, count);
    file_.write(item.begin + begin, bytes, count, in_quotes(names_[items[block.tensor]]));
  });
}

std::uint64_t ShardFile::header_checksum() const { return checksum_of(header_.data(), header_.size()); }

}  // namespace shardwright
