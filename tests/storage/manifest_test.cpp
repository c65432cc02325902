#include "storage/format/manifest.h"

#include <gtest/gtest.h>

#include <functional>

#include "storage/format/checksum.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

/// Two chunks of a tensor of [4, 2] in two files, and an object.
Manifest example() {
  Manifest manifest;
  manifest.files = {{"a.safetensors", 110, 100, 1}, {"b.bin", 20, 0, 2}};
  StoredTensor tensor{"w", "bfloat16", "BF16", 2, {4, 2}, true, false, {}};
  tensor.chunks.push_back({{{0, 0}, {2, 2}}, {0, {100, 108, {11}}}});
  tensor.chunks.push_back({{{2, 0}, {2, 2}}, {1, {0, 8, {12}}}});
  manifest.tensors = {tensor};
  manifest.objects = {{"object", {1, {8, 20, {13}}}}};
  manifest.planner_data = std::string("\0\1\2", 3);
  return manifest;
}

std::string what_is_wrong(const std::string& bytes) {
  try {
    decode_manifest(bytes, "the file");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::malformed);
    return error.what();
  }
  return "nothing";
}

TEST(Manifest, ComesBackAsItWas) {
  const Manifest found = decode_manifest(encode_manifest(example()), "the file");
  ASSERT_EQ(found.files.size(), 2);
  EXPECT_EQ(found.files[0].name, "a.safetensors");
  EXPECT_EQ(found.files[0].size, 110);
  EXPECT_EQ(found.files[0].header_bytes, 100);
  EXPECT_EQ(found.files[1].header_checksum, 2);
  ASSERT_EQ(found.tensors.size(), 1);
  EXPECT_EQ(found.tensors[0].dtype, "bfloat16");
  EXPECT_TRUE(found.tensors[0].requires_grad);
  EXPECT_EQ(found.tensors[0].chunks[1].box, (Box{{2, 0}, {2, 2}}));
  EXPECT_EQ(found.tensors[0].chunks[1].range.bytes, (StoredBytes{0, 8, {12}}));
  EXPECT_EQ(found.objects[0].range.bytes, (StoredBytes{8, 20, {13}}));
  EXPECT_EQ(found.planner_data, std::string("\0\1\2", 3));
}

TEST(Manifest, EveryFlippedBitIsFound) {
  const std::string bytes = encode_manifest(example());
  for (std::size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_NE(what_is_wrong(damaged), "nothing") << "bit " << bit;
  }
  for (std::size_t length = 0; length < bytes.size(); ++length)
    EXPECT_NE(what_is_wrong(bytes.substr(0, length)), "nothing") << "length " << length;
}

TEST(Manifest, WhatCannotBeTrueIsRefused) {
  const std::vector<std::pair<std::string, std::function<void(Manifest&)>>> cases{
      {"name of its own", [](Manifest& m) { m.files[1].name = "../b.bin"; }},
      {"name of its own", [](Manifest& m) { m.files[1].name = "a.safetensors"; }},
      {"name of its own", [](Manifest& m) { m.files[1].name = ""; }},
      {"longer than the file", [](Manifest& m) { m.files[0].header_bytes = 111; }},
      {"not listed", [](Manifest& m) { m.objects[0].range.file = 2; }},
      {"outside the data", [](Manifest& m) { m.objects[0].range.bytes.end = 21; }},
      {"outside the data", [](Manifest& m) { m.objects[0].range.bytes.begin = 21; }},
      {"outside the data",
       [](Manifest& m) {
         m.tensors[0].chunks[0].range.bytes = {99, 107, {1}};
       }},
      {"1 checksums", [](Manifest& m) { m.objects[0].range.bytes.checksums.clear(); }},
      {"twice", [](Manifest& m) { m.objects[0].name = "w"; }},
      {"no dtype", [](Manifest& m) { m.tensors[0].safetensors_dtype = "BF17"; }},
      {"no dtype", [](Manifest& m) { m.tensors[0].element_bytes = 4; }},
      {"no dtype", [](Manifest& m) { m.tensors[0].element_bytes = 0; }},
      {"a shape",
       [](Manifest& m) {
         m.tensors[0].shape = {-1, 2};
       }},
      {"a shape",
       [](Manifest& m) {
         m.tensors[0].shape = {std::int64_t{1} << 40, std::int64_t{1} << 40};
       }},
      {"leaves the tensor",
       [](Manifest& m) {
         m.tensors[0].chunks[1].box.offset = {3, 0};
       }},
      {"leaves the tensor",
       [](Manifest& m) {
         m.tensors[0].chunks[1].box.offset = {-1, 0};
       }},
      {"leaves the tensor",
       [](Manifest& m) {
         m.tensors[0].chunks[1].box = {{2}, {2}};
       }},
      {"do not make up",
       [](Manifest& m) {
         m.tensors[0].chunks[1].box.offset = {0, 0};
       }},
      {"do not make up", [](Manifest& m) { m.tensors[0].chunks.pop_back(); }},
      {"no chunks", [](Manifest& m) { m.tensors[0].chunks.clear(); }},
      {"8 bytes for a chunk", [](Manifest& m) { m.tensors[0].chunks[1].range.bytes.end = 6; }},
  };
  for (const auto& [words, harm] : cases) {
    Manifest manifest = example();
    harm(manifest);
    const std::string found = what_is_wrong(encode_manifest(manifest));
    EXPECT_NE(found.find(words), std::string::npos) << words << " not in: " << found;
  }
}

TEST(Manifest, ACatalogIsRefusedWhereAFileIsNotAsLongAsItWas) {
  const TemporaryDirectory folder;
  write_file(folder / "a.safetensors", std::string(110, 'a'));
  write_file(folder / "b.bin", std::string(20, 'b'));
  const Catalog catalog = catalog_of(example(), folder.path);
  ASSERT_EQ(catalog.tensors.size(), 2);
  EXPECT_EQ(catalog.tensors[1].offset, (Shape{2, 0}));
  write_file(folder / "b.bin", std::string(19, 'b'));
  EXPECT_THROW(catalog_of(example(), folder.path), Error);
}

TEST(Manifest, DtypesThatSafetensorsLacksAreBytes) {
  const TemporaryDirectory folder;
  Manifest manifest = example();
  manifest.tensors[0].safetensors_dtype = "";
  write_file(folder / "a.safetensors", std::string(110, 'a'));
  write_file(folder / "b.bin", std::string(20, 'b'));
  const Catalog catalog = catalog_of(decode_manifest(encode_manifest(manifest), "the file"), folder.path);
  EXPECT_EQ(catalog.tensors[1].dtype, DType::U8);
  EXPECT_EQ(catalog.tensors[1].shape, (Shape{2, 2, 2}));
  EXPECT_EQ(catalog.tensors[1].offset, (Shape{2, 0, 0}));
}

TEST(Checksum, IsXxh3AsItsSpecificationHasIt) {
  EXPECT_EQ(checksum_of("", 0), 0x2D06800538D394C2U);  // XXH3_64bits of no bytes
}

/// What two ranks have written of one tensor, and one of them of an object.
std::vector<WriteResults> two_ranks() {
  std::vector<WriteResults> ranks(2);
  for (std::size_t r = 0; r < 2; ++r) {
    WriteResults& rank = ranks[r];
    rank.rank = static_cast<std::int64_t>(4 + r);
    rank.values.values = {{"t", SavedValue::Kind::shards, {"bfloat16", "strided", 2, 3}, {2, 3}, {}, {}}};
    rank.items.add(0, {static_cast<std::int64_t>(1 - r), 0}, {1, 3});
    rank.files = {{r == 0 ? "a" : "b", 26, 20, 7 + r}};
    rank.ranges = {{0, {20, 26, {11 + r}}}};
  }
  ranks[1].values.values.push_back({"o", SavedValue::Kind::object, {}, {}, {}, {}});
  ranks[1].items.add(1, {}, {});
  ranks[1].files.push_back({"c", 9, 0, 1});
  ranks[1].ranges.push_back({1, {0, 9, {13}}});
  return ranks;
}

TEST(manifest, of_what_ranks_have_written) {
  Manifest found = manifest_of(two_ranks());
  ASSERT_EQ(found.files.size(), 3U);
  EXPECT_EQ(found.files[2].name, "c");
  ASSERT_EQ(found.tensors.size(), 1U);
  const StoredTensor& tensor = found.tensors[0];
  EXPECT_EQ(tensor.name + " " + tensor.dtype + " " + tensor.safetensors_dtype, "t bfloat16 BF16");
  EXPECT_EQ(tensor.element_bytes, 2U);
  EXPECT_EQ(tensor.shape, (Shape{2, 3}));
  EXPECT_TRUE(tensor.requires_grad && tensor.pin_memory);
  ASSERT_EQ(tensor.chunks.size(), 2U);
  EXPECT_EQ(tensor.chunks[0].box, (Box{{0, 0}, {1, 3}}));
  EXPECT_EQ(tensor.chunks[0].range, (FileRange{1, {20, 26, {12}}}));
  EXPECT_EQ(tensor.chunks[1].range, (FileRange{0, {20, 26, {11}}}));
  ASSERT_EQ(found.objects.size(), 1U);
  EXPECT_EQ(found.objects[0].range, (FileRange{2, {0, 9, {13}}}));
  EXPECT_NO_THROW(decode_manifest(encode_manifest(found), "the file"));
}

TEST(manifest, a_box_that_two_ranks_have_written_is_there_once) {
  std::vector<WriteResults> ranks = two_ranks();
  ranks[1].items.corners[0] = 1;
  const Manifest found = manifest_of(ranks);
  ASSERT_EQ(found.tensors.at(0).chunks.size(), 1U);
  EXPECT_EQ(found.tensors[0].chunks[0].range.file, 0U);
}

TEST(manifest, ranks_that_have_written_different_tensors_of_one_name_are_named) {
  std::vector<WriteResults> ranks = two_ranks();
  ranks[1].values.values[0].properties.dtype = "float16";
  expect_error(ErrorKind::mismatch,
               {"t: expected bfloat16 [2, 3] as on rank 4, found float16 [2, 3] on rank 5"},
               [&] { manifest_of(ranks); });
  ranks = two_ranks();
  ranks[1].files[1].name = "a";
  expect_error(ErrorKind::argument, {"two ranks have written a file \"a\""}, [&] { manifest_of(ranks); });
}

}  // namespace
}  // namespace shardwright
