#include "storage/format/hf_index.h"

#include <gtest/gtest.h>

#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

void expect_malformed(const std::string& json, std::initializer_list<std::string_view> texts) {
  expect_error(ErrorKind::malformed, texts, [&] { parse_hf_index(json, "dir/index.json"); });
  expect_error(ErrorKind::malformed, {"dir/index.json: "}, [&] { parse_hf_index(json, "dir/index.json"); });
}

TEST(hf_index, tensors_and_files_come_out_sorted) {
  const HfIndex index = parse_hf_index(
      R"({"metadata":{"total_size":7,"nested":[{"weight_map":{"x":1}}]},"weight_map":{"b":"2.st","a":"1.st","c":"2.st"}})",
      "x");
  EXPECT_EQ(index.files, (std::vector<std::string>{"1.st", "2.st"}));
  ASSERT_EQ(index.entries.size(), 3u);
  EXPECT_EQ(index.entries[0].tensor, "a");
  EXPECT_EQ(index.entries[0].file, 0u);
  EXPECT_EQ(index.entries[1].tensor, "b");
  EXPECT_EQ(index.entries[1].file, 1u);
}

TEST(hf_index, paths_in_sub_folders_are_fine_and_spellings_of_one_path_are_one_file) {
  const HfIndex index = parse_hf_index(
      R"({"weight_map":{"a":"sub/1.st","b":"./sub//1.st","c":"sub/./1.st","d":"..2.st"}})", "x");
  EXPECT_EQ(index.files, (std::vector<std::string>{"..2.st", "sub/1.st"}));
}

TEST(hf_index, what_is_written_reads_back_the_same) {
  const std::vector<HfIndex::Entry> entries = {{"b \"quoted\"", 1}, {"a", 0}};
  const HfIndex index = parse_hf_index(make_hf_index({"1.st", "2.st"}, entries, 99), "x");
  EXPECT_EQ(index.files, (std::vector<std::string>{"1.st", "2.st"}));
  EXPECT_EQ(index.entries[0].tensor, "a");
  EXPECT_EQ(index.entries[1].tensor, "b \"quoted\"");
  EXPECT_EQ(index.entries[1].file, 1u);
}

TEST(hf_index, text_that_is_not_json_is_an_error) {
  expect_malformed("{\"weight_map\": {",
                   {"expected the JSON of an index, but found a parse error at line 1"});
  expect_malformed("", {"found no text at all"});
  expect_malformed("[1]", {R"(but found "[" in place of the { that an object begins with)"});
  expect_malformed(std::string("{}\0", 3), {"NUL byte at offset 2"});
}

TEST(hf_index, a_missing_empty_or_doubled_weight_map_is_an_error) {
  expect_malformed(R"({"metadata":{}})", {"expected a weight_map", "found none"});
  expect_malformed(R"({"metadata":{"weight_map":{"a":"1.st"}}})", {"expected a weight_map", "found none"});
  expect_malformed(R"({"weight_map":{}})", {"at least one tensor"});
  expect_malformed(R"({"weight_map":{"a":"1"},"weight_map":{"a":"1"}})", {"weight_map is there twice"});
}

TEST(hf_index, a_weight_map_of_another_form_is_an_error) {
  expect_malformed(R"({"weight_map":7})", {"weight_map: expected an object", "found 7"});
  expect_malformed(R"({"weight_map":["a"]})", {"weight_map: expected an object", "found an array"});
  expect_malformed(R"({"weight_map":{"a":7}})", {"tensor \"a\"", "found 7"});
  expect_malformed(R"({"weight_map":{"a":{"file":"1.st"}}})", {"tensor \"a\"", "found an object"});
  expect_malformed(R"({"weight_map":{"a":null}})", {"tensor \"a\"", "found null"});
}

TEST(hf_index, a_tensor_that_is_there_twice_is_an_error_that_names_both_files) {
  expect_malformed(R"({"weight_map":{"a":"1.st","a":"2.st"}})",
                   {"tensor \"a\" is there twice", "1.st", "2.st"});
}

TEST(hf_index, paths_outside_the_directory_are_errors_that_name_them_all) {
  expect_malformed(R"({"weight_map":{"a":"/etc/passwd","b":"../x.st","c":"sub/../../y.st","d":"ok.st"}})",
                   {"inside the directory", "\"/etc/passwd\"", "\"../x.st\"", "\"sub/../../y.st\""});
  for (const char* path : {"", ".", "..", "sub/", "a\\u0000b"}) {
    expect_malformed(R"({"weight_map":{"a":")" + std::string(path) + "\"}}", {"inside the directory"});
  }
}

}  // namespace
}  // namespace shardwright
