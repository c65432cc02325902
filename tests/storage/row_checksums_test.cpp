#include "storage/format/row_checksums.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "planner/error.h"
#include "storage/format/checksum.h"
#include "storage/format/checksums_file.h"
#include "tests/planner/random_layouts.h"
#include "tests/planner/rounds.h"
#include "tests/storage/checkpoint_files.h"
#include "tests/storage/plain_checksums.h"

namespace shardwright {
namespace {

struct Example {
  SourceTensor tensor;
  std::string bytes;
};

/// Up to three dimensions, some of long rows and some of many, so that cells and blocks end anywhere.
Example random_example(Random& random) {
  Example example;
  const auto rank = random.between(0, 3);
  std::int64_t most = 3'000'000;
  for (std::int64_t d = 0; d < rank; ++d) {
    example.tensor.shape.push_back(
        random.between(1, std::max<std::int64_t>(1, random.between(0, 1) == 0 ? 9 : most)));
    most /= example.tensor.shape.back();
  }
  example.tensor.name = "t";
  example.tensor.dtype = random.between(0, 1) == 0 ? DType::BF16 : DType::F32;
  example.tensor.offset.assign(example.tensor.shape.size(), 0);
  const auto count = static_cast<std::size_t>(volume(example.tensor.shape) * bytes_of(example.tensor.dtype));
  example.bytes.resize(count);
  for (std::size_t at = 0; at < count; at += sizeof(std::uint32_t)) {
    const auto four = static_cast<std::uint32_t>(random.between(0, 0xFFFFFFFF));
    std::memcpy(example.bytes.data() + at, &four, std::min(sizeof four, count - at));
  }
  example.tensor.end = count;
  return example;
}

Shape strides_of(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (std::size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return strides;
}

/// Cuts a tensor into boxes, columns at the given ones.
std::vector<Box> cut(Random& random, const Shape& shape, const std::vector<std::int64_t>& columns) {
  std::vector<Box> boxes{{Shape(shape.size(), 0), shape}};
  if (shape.empty()) return boxes;
  std::vector<Box> done;
  while (!boxes.empty()) {
    Box box = boxes.back();
    boxes.pop_back();
    const auto d = static_cast<std::size_t>(random.between(0, std::ssize(shape) - 1));
    if (d + 1 == shape.size() || box.size[d] < 2 || random.between(0, 2) == 0) {
      std::int64_t begin = 0;
      for (const std::int64_t end : columns) {
        Box part = box;
        part.offset.back() = begin;
        part.size.back() = end - begin;
        done.push_back(part);
        begin = end;
      }
      continue;
    }
    Box first = box;
    first.size[d] = random.between(1, box.size[d] - 1);
    box.offset[d] += first.size[d];
    box.size[d] -= first.size[d];
    boxes.push_back(first);
    boxes.push_back(box);
  }
  return done;
}

StridedMemory part_of(const Example& example, const Box& box) {
  const Shape strides = strides_of(example.tensor.shape);
  std::int64_t at = 0;
  for (std::size_t d = 0; d < strides.size(); ++d) at += box.offset[d] * strides[d];
  return {reinterpret_cast<const std::byte*>(example.bytes.data()) + at * bytes_of(example.tensor.dtype),
          strides};
}

std::vector<std::int64_t> random_columns(Random& random, const Shape& shape) {
  std::vector<std::int64_t> columns;
  const std::int64_t last = shape.empty() ? 1 : shape.back();
  for (std::int64_t at = 0; random.between(0, 1) == 0 && at + 1 < last;) {
    at = random.between(at + 1, last - 1);
    columns.push_back(at);
  }
  columns.push_back(last);
  return columns;
}

TEST(RowSums, OfAnyBoxesOnAnyRanksAreThoseOfTheDefinition) {
  Random random(11);
  for (int round = 0; round < rounds(60); ++round) {
    const Example example = random_example(random);
    const std::vector<SourceTensor> tensors{example.tensor};
    const std::vector<std::int64_t> columns = random_columns(random, example.tensor.shape);
    RowSums one(tensors);
    RowSums other(tensors);
    for (const Box& box : cut(random, example.tensor.shape, columns))
      (random.between(0, 1) == 0 ? one : other).add(0, example.tensor.shape, box, part_of(example, box));
    const std::vector<RowChecksums> merged = merged_row_sums({one.encode(), other.encode()}, tensors);
    ASSERT_EQ(merged[0].cuts.size(), columns.size());
    const RowGeometry geometry = rows_of(example.tensor);
    ASSERT_EQ(merged[0].sums, plain_sums(example.bytes, geometry.row_bytes, merged[0].cuts)) << round;
  }
}

TEST(RowSums, WithoutSomeBytesOrWithColumnsCutInTwoWaysAreNone) {
  Random random(2);
  Example example = random_example(random);
  example.tensor.shape = {4, 6};
  example.tensor.dtype = DType::F32;
  example.bytes.assign(96, 'x');
  example.tensor.end = 96;
  const std::vector<SourceTensor> tensors{example.tensor};
  const auto merged = [&](const std::vector<Box>& boxes) {
    RowSums sums(tensors);
    for (const Box& box : boxes) sums.add(0, example.tensor.shape, box, part_of(example, box));
    return merged_row_sums({sums.encode()}, tensors)[0].sums.size();
  };
  EXPECT_EQ(merged({{{0, 0}, {4, 6}}}), 1);
  EXPECT_EQ(merged({{{0, 0}, {3, 6}}}), 0);
  EXPECT_EQ(merged({{{0, 0}, {4, 3}}, {{0, 3}, {4, 3}}}), 1);
  EXPECT_EQ(merged({{{0, 0}, {2, 3}}, {{0, 3}, {2, 3}}, {{2, 0}, {2, 6}}}), 0);
  EXPECT_THROW(merged_row_sums({"\xff nonsense"}, tensors), Error);
}

/// A catalog of one tensor, and a plan that reads these boxes of it.
struct Load {
  Catalog catalog;
  LoadPlan plan;
};

Load load_of(const Example& example, const std::vector<std::uint64_t>& cuts, const std::vector<Box>& boxes) {
  Load load;
  load.catalog.directory = "d";
  load.catalog.files = {{"f", example.bytes.size()}};
  load.catalog.tensors = {example.tensor};
  load.catalog.checksums = std::make_shared<const std::vector<RowChecksums>>(
      std::vector<RowChecksums>{{cuts, plain_sums(example.bytes, rows_of(example.tensor).row_bytes, cuts)}});
  for (const Box& box : boxes) {
    Transfer transfer;
    transfer.source_box = box;
    load.plan.transfers.push_back(transfer);
  }
  return load;
}

TEST(RowChecks, NoticeAnyFlippedBitOfABlockThatIsReadWhole) {
  Random random(5);
  for (int round = 0; round < rounds(60); ++round) {
    Example example = random_example(random);
    const std::vector<std::int64_t> columns = random_columns(random, example.tensor.shape);
    std::vector<std::uint64_t> cuts;
    for (const std::int64_t column : columns)
      cuts.push_back(static_cast<std::uint64_t>(column * bytes_of(example.tensor.dtype)));
    const std::vector<Box> boxes = cut(random, example.tensor.shape, columns);
    const Load load = load_of(example, cuts, {{Shape(example.tensor.shape.size(), 0), example.tensor.shape}});
    {
      RowChecks checks(load.plan, load.catalog);
      for (const Box& box : boxes) checks.add(0, example.tensor.shape, box, part_of(example, box));
      ASSERT_EQ(checks.bytes(), example.bytes.size()) << round;
    }
    const auto at = static_cast<std::size_t>(random.between(0, std::ssize(example.bytes) - 1));
    example.bytes[at] = static_cast<char>(example.bytes[at] ^ (1 << random.between(0, 7)));
    RowChecks checks(load.plan, load.catalog);
    const auto all = [&] {
      for (const Box& box : boxes) checks.add(0, example.tensor.shape, box, part_of(example, box));
    };
    EXPECT_THROW(all(), Error) << round;
  }
}

TEST(RowChecks, OfARankThatReadsPartsPassOverTheOthersAndWhatIsReadTwice) {
  Random random(7);
  Example example = random_example(random);
  example.tensor.shape = {2048, 1024};
  example.tensor.dtype = DType::F32;
  example.bytes.assign(2 * 4'194'304, 'x');
  example.tensor.end = example.bytes.size();
  const Box half{{0, 0}, {1500, 1024}};
  const Load load = load_of(example, {4096}, {half});
  RowChecks checks(load.plan, load.catalog);
  checks.add(0, example.tensor.shape, half, part_of(example, half));
  EXPECT_EQ(checks.bytes(), 4'194'304);  // the first 1,024 rows; the second block is read in part
  const Load twice = load_of(example, {4096}, {half, half});
  EXPECT_FALSE(RowChecks(twice.plan, twice.catalog).any());
}

TEST(Checksums, ComeBackAndRefuseWhatIsDamaged) {
  Checksums checksums;
  checksums.files = {{"model-00001-of-00001.safetensors", 900, 88, 7}};
  checksums.beside = {{"config.json", 4, 0, 9}, {"additional_chat_templates/a.jinja", 2, 0, 1}};
  checksums.tensors = {{"a", {{4, 8}, {1, 2}}}, {"b", {}}};
  const std::string bytes = encode_checksums(checksums);
  const Checksums back = decode_checksums(bytes, "f");
  EXPECT_EQ(back.files, checksums.files);
  EXPECT_EQ(back.beside, checksums.beside);
  EXPECT_EQ(back.tensors, checksums.tensors);
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 4);
    EXPECT_THROW(decode_checksums(damaged, "f"), Error) << at;
    EXPECT_THROW(decode_checksums(bytes.substr(0, at), "f"), Error) << at;
  }
  for (const char* outside : {"../x", "/etc/passwd", "a/../../x", "", "."}) {
    checksums.files[0].name = outside;
    EXPECT_THROW(decode_checksums(encode_checksums(checksums), "f"), Error) << outside;
  }
}

}  // namespace
}  // namespace shardwright
