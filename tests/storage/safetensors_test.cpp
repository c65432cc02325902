#include "storage/format/safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

SafetensorsHeader parse(std::string_view json, std::uint64_t data_bytes) {
  return parse_safetensors_header(json, 8 + json.size() + data_bytes, "dir/model.safetensors");
}

/// Each error names the file and says what to do.
void expect_malformed(std::string_view json, std::uint64_t data_bytes,
                      std::initializer_list<std::string_view> texts) {
  expect_error(ErrorKind::malformed, texts, [&] { parse(json, data_bytes); });
  expect_error(ErrorKind::malformed, {"dir/model.safetensors: ", "download or save it again"},
               [&] { parse(json, data_bytes); });
}

void expect_malformed_file(std::string_view bytes, std::initializer_list<std::string_view> texts) {
  const TemporaryDirectory directory;
  write_file(directory / "x.safetensors", bytes);
  std::uint64_t size = 0;
  expect_error(ErrorKind::malformed, texts,
               [&] { read_safetensors_header(directory / "x.safetensors", size); });
  expect_error(ErrorKind::malformed, {"x.safetensors: "},
               [&] { read_safetensors_header(directory / "x.safetensors", size); });
}

/// A header whose only tensor "w" has these fields.
std::string with_fields(const std::string& fields) { return "{\"w\":{" + fields + "}}"; }

TEST(safetensors, a_header_gives_names_dtypes_shapes_and_offsets_from_the_start_of_the_file) {
  const std::string json =
      R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},)"
      R"("a":{"data_offsets":[0,4],"shape":[],"dtype":"I32"},"c":{"dtype":"U8","shape":[0,5],"data_offsets":[28,28]}}  )";
  const SafetensorsHeader header = parse(json, 28);
  const std::uint64_t start = 8 + json.size();
  ASSERT_EQ(header.tensors.size(), 3u);
  EXPECT_EQ(header.tensors[0].name, "b");
  EXPECT_EQ(header.tensors[0].dtype, DType::F32);
  EXPECT_EQ(header.tensors[0].shape, (Shape{2, 3}));
  EXPECT_EQ(header.tensors[0].offset, (Shape{0, 0}));
  EXPECT_EQ(header.tensors[0].begin, start + 4);
  EXPECT_EQ(header.tensors[0].end, start + 28);
  EXPECT_EQ(header.tensors[1].name, "a");
  EXPECT_EQ(header.tensors[1].shape, Shape{});
  EXPECT_EQ(header.tensors[1].begin, start);
  EXPECT_EQ(header.tensors[2].shape, (Shape{0, 5}));
  EXPECT_EQ(header.metadata.at("format"), "pt");
}

TEST(safetensors, a_file_without_tensors_is_fine) { EXPECT_TRUE(parse("{}", 0).tensors.empty()); }

TEST(safetensors, packed_formats_are_counted_in_bits) {
  EXPECT_EQ(parse(with_fields(R"("dtype":"F4","shape":[3,2],"data_offsets":[0,3])"), 3).tensors[0].dtype,
            DType::F4);
  EXPECT_EQ(parse(with_fields(R"("dtype":"F6_E3M2","shape":[4],"data_offsets":[0,3])"), 3).tensors[0].dtype,
            DType::F6_E3M2);
}

TEST(safetensors, what_is_written_reads_back_the_same) {
  std::vector<SourceTensor> tensors(3);
  tensors[0] = {"plain.weight", DType::BF16, {3, 5}, {0, 0}};
  tensors[1] = {"quote \" backslash \\ tab \t umlaut \xC3\xBC", DType::F4, {2, 4}, {0, 0}};
  tensors[2] = {"scalar", DType::F64, {}, {}};
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"note", "a \"b\"\n"}};
  const std::string bytes = make_safetensors_header(tensors, metadata);
  EXPECT_EQ(bytes.size() % 8, 0u);
  EXPECT_EQ(tensors[0].begin, bytes.size());
  EXPECT_EQ(tensors[2].end, bytes.size() + 30 + 4 + 8);

  const SafetensorsHeader header =
      parse_safetensors_header(std::string_view(bytes).substr(8), tensors[2].end, "x");
  EXPECT_EQ(little_endian(bytes.size() - 8), bytes.substr(0, 8));
  EXPECT_EQ(header.metadata, metadata);
  ASSERT_EQ(header.tensors.size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(header.tensors[i].name, tensors[i].name);
    EXPECT_EQ(header.tensors[i].dtype, tensors[i].dtype);
    EXPECT_EQ(header.tensors[i].shape, tensors[i].shape);
    EXPECT_EQ(header.tensors[i].begin, tensors[i].begin);
    EXPECT_EQ(header.tensors[i].end, tensors[i].end);
  }
}

TEST(safetensors, a_tensor_that_the_format_cannot_hold_is_not_written) {
  std::vector<SourceTensor> tensors(1);
  tensors[0] = {"w", DType::F4, {3}, {0}};
  expect_error(ErrorKind::argument, {"F4", "[3]", "no whole number of bytes"},
               [&] { make_safetensors_header(tensors, {}); });
  tensors[0] = {"bad \xFF name", DType::U8, {3}, {0}};
  expect_error(ErrorKind::argument, {"UTF-8", "bad \\xff name"},
               [&] { make_safetensors_header(tensors, {}); });
}

TEST(safetensors, a_name_that_no_reader_takes_is_not_written) {
  for (const std::string& name : {std::string(), std::string("__metadata__"), std::string("a\0b", 3)}) {
    std::vector<SourceTensor> tensors(1);
    tensors[0] = {name, DType::U8, {3}, {0}};
    expect_error(ErrorKind::argument, {"cannot hold a tensor named", "rename the tensor"}, [&] {
      make_safetensors_header(tensors, {{"format", "pt"}});
    });
  }
}

// The length field.

TEST(safetensors, a_file_too_short_for_the_length_field_is_an_error) {
  expect_malformed_file("1234567", {"expected at least 8 bytes", "found 7"});
  expect_malformed_file("", {"found 0"});
}

TEST(safetensors, a_header_length_of_zero_is_an_error) {
  expect_malformed_file(little_endian(0) + "{}", {"found a header length of 0"});
}

TEST(safetensors, a_header_longer_than_the_file_is_an_error) {
  expect_malformed_file(little_endian(3) + "{}",
                        {"expected a header of 3 bytes", "found a file of 10 bytes"});
}

TEST(safetensors, an_absurd_header_length_is_an_error_before_memory_is_taken_for_it) {
  expect_malformed_file(little_endian(~0ull) + "{}", {"at most 100000000 bytes", "18446744073709551615"});
  expect_malformed_file(little_endian(100'000'001) + "{}", {"at most 100000000 bytes", "100000001"});
}

// JSON.

TEST(safetensors, a_header_that_is_not_json_is_an_error) {
  expect_malformed("{\"w\": }", 0, {"not valid JSON", "column 7"});
  expect_malformed("{\"w\":{\"dtype\":\"U8\"", 0, {"not valid JSON"});
  expect_malformed("{} x", 0, {"not valid JSON"});
  expect_malformed("{\"w\":{\"dtype\":\"U8\",\"shape\":[1e999]", 0, {"not valid JSON"});
}

TEST(safetensors, a_header_that_is_no_object_is_an_error) {
  expect_malformed("[]", 0, {"begins with {", "found \"[\""});
  expect_malformed(" {}", 0, {"begins with {"});
  expect_malformed("\xEF\xBB\xBF{}", 0, {"begins with {"});
  expect_malformed("", 0, {"begins with {"});
}

TEST(safetensors, text_behind_a_nul_is_not_hidden) {
  expect_malformed(std::string_view("{}\0{\"w\":1}", 10), 0, {"NUL byte at offset 2"});
}

TEST(safetensors, invalid_utf8_is_an_error_whose_message_is_valid_utf8) {
  expect_malformed("{\"w\xFF\":{}}", 0, {"UTF-8", "\\xff"});
}

TEST(safetensors, a_name_with_a_nul_or_without_characters_is_an_error) {
  const std::string fields = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]}})";
  expect_malformed(R"({"w\u0000x":)" + fields, 1, {"w\\x00x", "without NUL"});
  expect_malformed(R"({"":)" + fields, 1, {"name", "empty"});
}

TEST(safetensors, nested_and_misplaced_values_are_errors_however_deep) {
  expect_malformed(R"({"w":{"dtype":{"a":1}}})", 0, {"tensor \"w\"", "\"dtype\"", "found an object"});
  expect_malformed(R"({"w":{"dtype":"U8","shape":[[1]]}})", 0,
                   {"tensor \"w\"", "\"shape\"", "found an array"});
  expect_malformed(R"({"w":{"dtype":7}})", 0, {"expected text for \"dtype\"", "found 7"});
  expect_malformed(R"({"w":{"shape":"3"}})", 0, {"expected an array for \"shape\"", "found \"3\""});
  expect_malformed(R"({"w":[1]})", 0, {"tensor \"w\": expected an object", "found an array"});
  expect_malformed(R"({"w":null})", 0, {"tensor \"w\": expected an object", "found null"});
  expect_malformed(R"({"__metadata__":"x"})", 0, {"__metadata__: expected an object", "found \"x\""});
  expect_malformed(R"({"__metadata__":{"format":7}})", 0, {"expected text for \"format\"", "found 7"});
  expect_malformed("{\"w\":" + std::string(1'000'000, '['), 0, {"found an array"});
}

TEST(safetensors, missing_fields_are_errors) {
  expect_malformed(with_fields(R"("shape":[1],"data_offsets":[0,1])"), 1,
                   {"tensor \"w\"", "\"dtype\"", "none"});
  expect_malformed(with_fields(R"("dtype":"U8","data_offsets":[0,1])"), 1,
                   {"tensor \"w\"", "\"shape\"", "none"});
  expect_malformed(with_fields(R"("dtype":"U8","shape":[1])"), 1,
                   {"tensor \"w\"", "\"data_offsets\"", "none"});
}

TEST(safetensors, unknown_fields_are_errors) {
  expect_malformed(with_fields(R"("dtype":"U8","strides":[1])"), 1, {"tensor \"w\"", "found \"strides\""});
}

TEST(safetensors, duplicate_names_are_errors) {
  expect_malformed(R"({"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                   R"("w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})",
                   1, {"tensor \"w\" is there twice"});
  expect_malformed(with_fields(R"("dtype":"U8","dtype":"I8")"), 1,
                   {"tensor \"w\"", "\"dtype\" is there twice"});
  expect_malformed(R"({"__metadata__":{},"__metadata__":{}})", 0, {"__metadata__ is there twice"});
  expect_malformed(R"({"__metadata__":{"a":"1","a":"2"}})", 0, {"__metadata__ names \"a\" twice"});
}

// Numbers.

TEST(safetensors, negative_fractional_and_huge_numbers_are_errors) {
  for (const char* number : {"-1", "1.5", "1e3", "9223372036854775808", "18446744073709551616"}) {
    expect_malformed(with_fields(R"("dtype":"U8","shape":[)" + std::string(number) + "]"), 0,
                     {"tensor \"w\"", "whole numbers from 0 to 2^63 - 1 in \"shape\"", number});
  }
  for (const char* number : {"-1", "0.0", "18446744073709551616"}) {
    expect_malformed(with_fields(R"("data_offsets":[)" + std::string(number) + ",1]"), 0,
                     {"tensor \"w\"", "\"data_offsets\"", number});
  }
  expect_malformed(with_fields(R"("data_offsets":[true,1])"), 0, {"\"data_offsets\"", "found true"});
}

TEST(safetensors, other_than_two_data_offsets_are_an_error) {
  expect_malformed(with_fields(R"("data_offsets":[0])"), 0,
                   {"tensor \"w\"", "expected two data_offsets, found 1"});
  expect_malformed(with_fields(R"("data_offsets":[0,1,2])"), 0,
                   {"tensor \"w\"", "expected two data_offsets"});
}

TEST(safetensors, more_than_eight_dimensions_are_an_error_that_says_so) {
  EXPECT_EQ(
      parse(with_fields(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1],"data_offsets":[0,1])"), 1).tensors.size(),
      1u);
  expect_malformed(with_fields(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])"), 1,
                   {"tensor \"w\"", "at most 8 dimensions"});
}

TEST(safetensors, a_shape_whose_product_overflows_is_an_error) {
  expect_malformed(with_fields(R"("dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0,
                   {"tensor \"w\"", "[4294967296, 4294967296]", "more elements than 64 bits"});
  expect_malformed(with_fields(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])"), 0,
                   {"tensor \"w\"", "more elements than 64 bits"});
  expect_malformed(with_fields(R"("dtype":"U8","shape":[0,9223372036854775807,2],"data_offsets":[0,0])"), 0,
                   {"tensor \"w\"", "more elements than 64 bits"});
}

TEST(safetensors, an_unknown_dtype_is_an_error) {
  expect_malformed(with_fields(R"("dtype":"F8_E9M9","shape":[1],"data_offsets":[0,1])"), 1,
                   {"tensor \"w\"", "expected a dtype", "found \"F8_E9M9\""});
}

// Offsets.

TEST(safetensors, offsets_that_end_before_they_begin_are_an_error) {
  expect_malformed(with_fields(R"("dtype":"U8","shape":[1],"data_offsets":[2,1])"), 2,
                   {"tensor \"w\"", "[2, 1]", "end before they begin"});
}

TEST(safetensors, offsets_beyond_the_file_are_an_error) {
  expect_malformed(with_fields(R"("dtype":"U8","shape":[9],"data_offsets":[0,9])"), 8,
                   {"tensor \"w\"", "[0, 9]", "beyond the file", "8 bytes"});
  expect_malformed(
      with_fields(R"("dtype":"U8","shape":[1],"data_offsets":[18446744073709551614,18446744073709551615])"),
      8, {"tensor \"w\"", "beyond the file"});
}

TEST(safetensors, a_size_other_than_shape_times_dtype_is_an_error) {
  expect_malformed(with_fields(R"("dtype":"BF16","shape":[3,5],"data_offsets":[0,29])"), 29,
                   {"tensor \"w\"", "expected 30 bytes for dtype BF16 and shape [3, 5]", "found 29"});
  expect_malformed(with_fields(R"("dtype":"F32","shape":[],"data_offsets":[0,0])"), 0,
                   {"tensor \"w\"", "expected 4 bytes", "found 0"});
}

TEST(safetensors, a_packed_tensor_that_ends_inside_a_byte_is_an_error) {
  expect_malformed(with_fields(R"("dtype":"F4","shape":[3],"data_offsets":[0,2])"), 2,
                   {"tensor \"w\"", "F4", "[3]", "no whole number of bytes"});
  expect_malformed(with_fields(R"("dtype":"F6_E2M3","shape":[2],"data_offsets":[0,2])"), 2,
                   {"tensor \"w\"", "no whole number of bytes"});
}

TEST(safetensors, overlapping_tensors_are_an_error_that_names_both) {
  expect_malformed(R"({"v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                   R"("w":{"dtype":"U8","shape":[4],"data_offsets":[3,7]}})",
                   7, {"\"v\"", "\"w\"", "overlap", "[0, 4]", "[3, 7]"});
  expect_malformed(R"({"v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                   R"("w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
                   4, {"\"v\"", "\"w\"", "overlap"});
}

TEST(safetensors, a_gap_between_tensors_is_an_error) {
  expect_malformed(R"({"v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                   R"("w":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})",
                   9, {"tensor \"w\"", "data offset 4", "found 5"});
  expect_malformed(with_fields(R"("dtype":"U8","shape":[1],"data_offsets":[1,2])"), 2,
                   {"data offset 0", "found 1"});
}

TEST(safetensors, bytes_after_the_last_tensor_are_an_error) {
  expect_malformed(with_fields(R"("dtype":"U8","shape":[1],"data_offsets":[0,1])"), 4,
                   {"after 1 bytes", "found 3 bytes"});
  expect_malformed("{}", 1, {"after 0 bytes", "found 1 bytes"});
}

// Files.

TEST(safetensors, what_is_no_regular_file_is_an_io_error_and_no_hang) {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "d.safetensors");
  std::uint64_t size = 0;
  expect_error(ErrorKind::io, {"d.safetensors", "found a directory"},
               [&] { read_safetensors_header(directory / "d.safetensors", size); });
  ASSERT_EQ(mkfifo((directory / "p.safetensors").c_str(), 0600), 0);
  expect_error(ErrorKind::io, {"p.safetensors", "regular file"},
               [&] { read_safetensors_header(directory / "p.safetensors", size); });
}

}  // namespace
}  // namespace shardwright
