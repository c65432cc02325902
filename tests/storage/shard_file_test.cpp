#include "storage/write/shard_file.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "storage/format/checksum.h"
#include "storage/format/safetensors.h"
#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"
#include "tests/storage/plain_bytes.h"
#include "tests/storage/plain_checksums.h"

namespace shardwright {
namespace {

TEST(Gather, BoxesInOrderAreTheElementsOfAnyPartOfTheOrder) {
  Random random(2);
  for (int round = 0; round < 500; ++round) {
    const Shape shape = random_shape(random, random.between(0, 4), 1, 5);
    const std::int64_t begin = random.between(0, volume(shape));
    const std::int64_t count = random.between(0, volume(shape) - begin);
    std::vector<std::size_t> found;
    for (const Box& box : boxes_in_order(shape, begin, count)) {
      for_each_index(box.size, [&](const Shape& at) { found.push_back(flat(plus(at, box.offset), shape)); });
    }
    std::vector<std::size_t> expected(static_cast<std::size_t>(count));
    std::iota(expected.begin(), expected.end(), static_cast<std::size_t>(begin));
    ASSERT_EQ(found, expected) << to_string(shape);
  }
}

TEST(Gather, EqualsTheElementsOneByOneForAnyStridesAndPart) {
  std::mt19937 random(1);
  std::vector<std::byte> memory(1 << 16);
  for (std::byte& byte : memory) byte = static_cast<std::byte>(random());
  for (int round = 0; round < 500; ++round) {
    TensorInMemory tensor{memory.data(), {}, {}, std::uint64_t{1} << random() % 4};
    for (std::size_t rank = random() % 5; rank > 0; --rank)
      tensor.shape.push_back(static_cast<std::int64_t>(random() % 5));
    tensor.strides = contiguous_strides(tensor.shape);
    if (random() % 2 == 0) {
      for (std::int64_t& stride : tensor.strides) stride = static_cast<std::int64_t>(random() % 100);
    }
    const std::string expected = plain_bytes(tensor);
    const std::uint64_t elements = expected.size() / tensor.element_bytes;
    const std::uint64_t begin = elements == 0 ? 0 : random() % elements;
    const std::uint64_t count = elements == 0 ? 0 : random() % (elements - begin + 1);
    std::string found(count * tensor.element_bytes, '\0');
    gather(tensor, begin * tensor.element_bytes, found.size(), reinterpret_cast<std::byte*>(found.data()));
    ASSERT_EQ(found, expected.substr(begin * tensor.element_bytes, found.size())) << "round " << round;
    if (is_contiguous(tensor) && !expected.empty()) {
      ASSERT_EQ(expected, std::string(reinterpret_cast<const char*>(memory.data()), expected.size()));
    }
  }
}

TEST(ShardFile, IsASafetensorsFileOfChunksWithTheirOffsetsAndChecksums) {
  const TemporaryDirectory folder;
  const std::int64_t rows = 3 * static_cast<std::int64_t>(checksum_block_bytes) / 8 + 5;
  std::vector<std::uint32_t> memory(static_cast<std::size_t>(2 * rows));
  for (std::size_t i = 0; i < memory.size(); ++i) memory[i] = static_cast<std::uint32_t>(i * 2654435761U);
  const auto* data = reinterpret_cast<const std::byte*>(memory.data());
  const std::vector<TensorInMemory> tensors{
      {data, {rows, 2}, {2, 1}, 4}, {data, {2, rows}, {1, 2}, 4}, {data, {}, {}, 4}};
  ShardFile file(folder / "x.safetensors",
                 {{"as it is", DType::F32, {rows, 2}, {7, 0}, 0, 0, 0},
                  {"turned", DType::I32, {2, rows}, {0, 9}, 0, 0, 0},
                  {"scalar \"", DType::F32, {}, {}, 0, 0, 0}},
                 true);
  file.write(std::vector<std::size_t>{2, 0}, std::vector<TensorInMemory>{tensors[2], tensors[0]}, 2);
  file.write(std::vector<std::size_t>{1}, std::vector<TensorInMemory>{tensors[1]}, 3);
  file.finish();

  const std::string bytes = read_file(folder / "x.safetensors");
  EXPECT_EQ(bytes.size(), file.size());
  EXPECT_EQ(checksum_of(bytes.data(), file.header_bytes()), file.header_checksum());
  std::uint64_t size = 0;
  const SafetensorsHeader header = read_safetensors_header(folder / "x.safetensors", size);
  ASSERT_EQ(header.tensors.size(), 3);
  EXPECT_EQ(header.tensors[0].offset, (Shape{7, 0}));
  EXPECT_EQ(header.tensors[1].offset, (Shape{0, 9}));
  for (std::size_t i = 0; i < 3; ++i) {
    const SourceTensor& stored = header.tensors[i];
    const std::string expected = plain_bytes(tensors[i]);
    ASSERT_EQ(bytes.substr(stored.begin, stored.end - stored.begin), expected) << i;
    const StoredBytes& item = file.items()[i];
    EXPECT_EQ(item.begin, stored.begin);
    const std::uint64_t row_bytes =
        stored.shape.empty() ? 4 : 4 * static_cast<std::uint64_t>(stored.shape.back());
    EXPECT_EQ(item.checksums, plain_sums(expected, row_bytes));
  }
}

TEST(ShardFile, ATensorThatIsNotAsPlannedIsRefused) {
  const TemporaryDirectory folder;
  ShardFile file(folder / "x.safetensors", {{"w", DType::F32, {2}, {0}, 0, 0, 0}}, true);
  const std::vector<std::byte> memory(16);
  EXPECT_THROW(
      file.write(std::vector<std::size_t>{0}, std::vector<TensorInMemory>{{memory.data(), {3}, {1}, 4}}, 1),
      Error);
}

TEST(ShardFile, AFileThatCannotBeMadeIsRefused) {
  const TemporaryDirectory folder;
  EXPECT_THROW(ShardFile(folder / "nowhere/x.safetensors", {{"w", DType::F32, {2}, {0}, 0, 0, 0}}, true),
               Error);
}

}  // namespace
}  // namespace shardwright
