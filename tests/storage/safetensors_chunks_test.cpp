#include <gtest/gtest.h>

#include "storage/format/read_catalog.h"
#include "storage/format/safetensors.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

std::string escaped(std::string text) {
  for (std::size_t at = 0; (at = text.find('"', at)) != std::string::npos; at += 2) text.insert(at, 1, '\\');
  return text;
}

/// A file as torch's HuggingFaceStorageWriter(save_distributed=True) writes it: one U8 chunk of "w", and
/// where it lies.
std::string chunk_json(const std::string& shape, std::uint64_t bytes, const std::string& sharding) {
  return R"({"__metadata__":{"DCP_VERSION":"1.0","format":"pt","DCP_SHARDING_INFO":")" + escaped(sharding) +
         R"("},"w":{"dtype":"U8","shape":)" + shape + R"(,"data_offsets":[0,)" + std::to_string(bytes) +
         "]}}";
}

std::string offsets(const std::string& list) { return R"({"w": {"saved_offsets": )" + list + "}}"; }

void write_chunk(const TemporaryDirectory& directory, const std::string& file, const std::string& shape,
                 std::uint64_t bytes, const std::string& list) {
  write_file(directory / file, safetensors_bytes(chunk_json(shape, bytes, offsets(list)), bytes));
}

void expect_malformed(const std::string& sharding, std::initializer_list<std::string_view> texts) {
  const std::string json = chunk_json("[2,3]", 6, sharding);
  const auto parse = [&] { parse_safetensors_header(json, 8 + json.size() + 6, "shard.safetensors"); };
  expect_error(ErrorKind::malformed, texts, parse);
  expect_error(ErrorKind::malformed, {"shard.safetensors: DCP_SHARDING_INFO: "}, parse);
}

TEST(safetensors_chunks, offsets_are_read_from_dcp_sharding_info) {
  const std::string json = chunk_json("[2,3]", 6, offsets("[4, 0]"));
  const SafetensorsHeader header = parse_safetensors_header(json, 8 + json.size() + 6, "x");
  EXPECT_EQ(header.tensors[0].offset, (Shape{4, 0}));
  EXPECT_EQ(header.tensors[0].shape, (Shape{2, 3}));
}

TEST(safetensors_chunks, malformed_sharding_info_is_an_error) {
  expect_malformed("{", {"expected JSON"});
  expect_malformed("[]", {R"(expected JSON, but found "[" in place of the {)"});
  expect_malformed(R"({"w": 7})", {"tensor \"w\"", "found 7"});
  expect_malformed(R"({"w": {}})", {"tensor \"w\"", "saved_offsets", "found none"});
  expect_malformed(R"({"w": {"offsets": [0, 0]}})", {"tensor \"w\"", "found \"offsets\""});
  expect_malformed(R"({"w": {"saved_offsets": [0, 0]}, "w": {"saved_offsets": [0, 0]}})",
                   {"\"w\" is there twice"});
  expect_malformed("{}", {"saved_offsets for every tensor", "\"w\""});
  expect_malformed(R"({"w": {"saved_offsets": [0, 0]}, "v": {"saved_offsets": []}})",
                   {"\"v\"", "does not hold"});
}

TEST(safetensors_chunks, offsets_of_another_rank_or_range_are_an_error) {
  expect_malformed(offsets("[0]"), {"tensor \"w\"", "expected 2 saved_offsets for shape [2, 3]", "found 1"});
  expect_malformed(offsets("[-1, 0]"), {"tensor \"w\"", "found -1"});
  expect_malformed(offsets("[0.5, 0]"), {"tensor \"w\"", "found 0.5"});
  expect_malformed(offsets("[9223372036854775807, 0]"),
                   {"tensor \"w\"", "9223372036854775807", "beyond 2^63"});
  expect_malformed(offsets("[9223372036854775808, 0]"), {"tensor \"w\"", "found 9223372036854775808"});
}

TEST(safetensors_chunks, chunks_in_several_files_are_one_tensor) {
  const TemporaryDirectory directory;
  write_chunk(directory, "shard-00001-model-00001-of-00001.safetensors", "[1,5]", 5, "[2, 0]");
  write_chunk(directory, "shard-00000-model-00001-of-00001.safetensors", "[2,5]", 10, "[0, 0]");
  const Catalog catalog = read_catalog(directory.path);
  const auto chunks = catalog.find("w");
  ASSERT_EQ(chunks.size(), 2u);
  EXPECT_EQ(chunks[0].offset, (Shape{0, 0}));
  EXPECT_EQ(chunks[1].offset, (Shape{2, 0}));
  EXPECT_EQ(Catalog::global_shape(chunks), (Shape{3, 5}));
  EXPECT_EQ(catalog.path_of(chunks[1]).filename(), "shard-00001-model-00001-of-00001.safetensors");
}

TEST(safetensors_chunks, chunks_may_be_a_grid) {
  const TemporaryDirectory directory;
  for (int row = 0; row < 3; ++row) {
    for (int column = 0; column < 2; ++column) {
      write_chunk(directory, std::to_string(row) + std::to_string(column) + ".safetensors", "[2,4]", 8,
                  "[" + std::to_string(2 * row) + ", " + std::to_string(4 * column) + "]");
    }
  }
  EXPECT_EQ(Catalog::global_shape(read_catalog(directory.path).find("w")), (Shape{6, 8}));
}

TEST(safetensors_chunks, ranks_that_hold_nothing_of_a_tensor_leave_empty_chunks) {
  const TemporaryDirectory directory;
  write_chunk(directory, "a.safetensors", "[1,3]", 3, "[0, 0]");
  write_chunk(directory, "b.safetensors", "[0,3]", 0, "[1, 0]");
  write_chunk(directory, "c.safetensors", "[0,3]", 0, "[1, 0]");
  EXPECT_EQ(Catalog::global_shape(read_catalog(directory.path).find("w")), (Shape{1, 3}));
}

TEST(safetensors_chunks, chunks_that_overlap_are_an_error_that_names_tensor_and_files) {
  const TemporaryDirectory directory;
  write_chunk(directory, "a.safetensors", "[2,5]", 10, "[0, 0]");
  write_chunk(directory, "b.safetensors", "[2,5]", 10, "[1, 0]");
  expect_error(ErrorKind::malformed,
               {"tensor \"w\"", "[3, 5]", "each element once", "a.safetensors", "b.safetensors"},
               [&] { read_catalog(directory.path); });
}

TEST(safetensors_chunks, a_missing_chunk_is_an_error_that_names_the_tensor) {
  const TemporaryDirectory directory;
  write_chunk(directory, "a.safetensors", "[2,5]", 10, "[2, 0]");
  expect_error(ErrorKind::malformed, {"tensor \"w\"", "[4, 5]", "10 of 20 elements", "a.safetensors"},
               [&] { read_catalog(directory.path); });
}

TEST(safetensors_chunks, chunks_of_another_dtype_or_rank_are_an_error) {
  const TemporaryDirectory directory;
  write_chunk(directory, "a.safetensors", "[2,5]", 10, "[0, 0]");
  write_chunk(directory, "b.safetensors", "[5]", 5, "[2]");
  expect_error(ErrorKind::malformed, {"tensor \"w\"", "one dtype and rank", "U8 [2, 5]", "U8 [5]"},
               [&] { read_catalog(directory.path); });
}

TEST(safetensors_chunks, chunks_that_lie_absurdly_far_apart_are_an_error) {
  const TemporaryDirectory directory;
  write_chunk(directory, "a.safetensors", "[1,1]", 1, "[4611686018427387904, 4611686018427387904]");
  expect_error(ErrorKind::malformed, {"tensor \"w\"", "more elements than 64 bits"},
               [&] { read_catalog(directory.path); });
}

}  // namespace
}  // namespace shardwright
