#include "storage/format/read_catalog.h"

#include <gtest/gtest.h>

#include <cerrno>

#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

constexpr char index_name[] = "model.safetensors.index.json";

/// Reads with one thread and with more than there are files.
Catalog read(const TemporaryDirectory& directory) {
  Catalog catalog = read_catalog(directory.path, 1);
  EXPECT_EQ(read_catalog(directory.path, 7).tensors.size(), catalog.tensors.size());
  return catalog;
}

void expect_malformed(const TemporaryDirectory& directory, std::initializer_list<std::string_view> texts) {
  for (const int threads : {1, 3}) {
    expect_error(ErrorKind::malformed, texts, [&] { read_catalog(directory.path, threads); });
  }
}

TEST(read_catalog, without_an_index_all_safetensors_files_are_read) {
  const TemporaryDirectory directory;
  write_file(directory / "2.safetensors", one_tensor_file("b.weight", 3));
  write_file(directory / "1.safetensors", one_tensor_file("c.weight", 5));
  write_file(directory / "._1.safetensors", "what macOS leaves behind");
  write_file(directory / "notes.txt", "");
  const Catalog catalog = read(directory);
  ASSERT_EQ(catalog.files.size(), 2u);
  EXPECT_EQ(catalog.files[0].name, "1.safetensors");
  EXPECT_EQ(catalog.files[0].size, std::filesystem::file_size(directory / "1.safetensors"));
  ASSERT_EQ(catalog.tensors.size(), 2u);
  EXPECT_EQ(catalog.tensors[0].name, "b.weight");
  EXPECT_EQ(catalog.tensors[0].file, 1u);
  EXPECT_EQ(catalog.path_of(catalog.tensors[0]), directory / "2.safetensors");
  EXPECT_EQ(catalog.config, "");
}

TEST(read_catalog, tensors_are_found_by_their_whole_name) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("layers.1.w", 3));
  write_file(directory / "2.safetensors", one_tensor_file("layers.10.w", 5));
  const Catalog catalog = read(directory);
  ASSERT_EQ(catalog.find("layers.10.w").size(), 1u);
  EXPECT_EQ(Catalog::global_shape(catalog.find("layers.10.w")), Shape{5});
  EXPECT_TRUE(catalog.find("layers.1").empty());
  EXPECT_TRUE(catalog.find("").empty());
  EXPECT_TRUE(catalog.find("zzz").empty());
}

TEST(read_catalog, an_index_chooses_the_files) {
  const TemporaryDirectory directory;
  write_file(directory / "sub/1.safetensors", one_tensor_file("a"));
  write_file(directory / "consolidated.safetensors", one_tensor_file("a"));
  write_file(directory / index_name, R"({"weight_map":{"a":"sub/1.safetensors"}})");
  const Catalog catalog = read(directory);
  ASSERT_EQ(catalog.files.size(), 1u);
  EXPECT_EQ(catalog.path_of(catalog.tensors[0]), directory / "sub/1.safetensors");
}

TEST(read_catalog, files_may_be_symbolic_links_as_in_the_hugging_face_cache) {
  const TemporaryDirectory directory;
  write_file(directory / "blobs/123", one_tensor_file("a"));
  std::filesystem::create_directory(directory / "snapshot");
  std::filesystem::create_symlink("../blobs/123", directory / "snapshot/1.safetensors");
  write_file(directory / "snapshot" / index_name, R"({"weight_map":{"a":"1.safetensors"}})");
  EXPECT_EQ(read_catalog(directory / "snapshot").tensors.size(), 1u);
}

TEST(read_catalog, the_config_is_kept_as_it_is) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  write_file(directory / "config.json", " {\"model_type\": \"minimax_m3_vl\"}\n");
  EXPECT_EQ(read(directory).config, " {\"model_type\": \"minimax_m3_vl\"}\n");
}

// Bad directories.

TEST(read_catalog, a_missing_directory_is_not_found) {
  const TemporaryDirectory directory;
  expect_error(ErrorKind::not_found, {"nowhere", "no such directory"},
               [&] { read_catalog(directory / "nowhere"); });
}

TEST(read_catalog, a_file_in_place_of_a_directory_is_not_found) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  expect_error(ErrorKind::not_found, {"1.safetensors", "expected the directory", "found a file"},
               [&] { read_catalog(directory / "1.safetensors"); });
}

TEST(read_catalog, a_directory_without_safetensors_is_not_found) {
  const TemporaryDirectory directory;
  write_file(directory / "pytorch_model.bin", "");
  expect_error(ErrorKind::not_found, {directory.path.native(), "expected *.safetensors, found none"},
               [&] { read_catalog(directory.path); });
}

TEST(read_catalog, a_file_that_cannot_be_opened_is_an_io_error_with_its_errno) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  std::filesystem::create_symlink("2.safetensors", directory / "2.safetensors");  // a link to itself
  try {
    read_catalog(directory.path);
    FAIL() << "expected an Error";
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind), static_cast<int>(ErrorKind::io));
    EXPECT_EQ(error.system_error, ELOOP);
    EXPECT_NE(std::string_view(error.what()).find("2.safetensors"), std::string_view::npos) << error.what();
  }
}

TEST(read_catalog, a_link_to_nothing_is_an_error_and_not_passed_over) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  std::filesystem::create_symlink("gone", directory / "2.safetensors");
  expect_error(ErrorKind::not_found, {"2.safetensors"}, [&] { read_catalog(directory.path); });
  std::filesystem::remove(directory / "2.safetensors");
  std::filesystem::create_symlink("gone", directory / index_name);
  expect_error(ErrorKind::not_found, {index_name}, [&] { read_catalog(directory.path); });
}

TEST(read_catalog, a_negative_number_of_threads_is_an_argument_error) {
  expect_error(ErrorKind::argument, {"threads", "found -1"}, [&] { read_catalog(".", -1); });
}

// Bad files.

TEST(read_catalog, a_malformed_header_is_an_error_that_names_the_file) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  write_file(directory / "2.safetensors", safetensors_bytes("{\"b\":}", 0));
  write_file(directory / "3.safetensors", "");
  expect_malformed(directory, {directory.path.native() + "/2.safetensors: ", "not valid JSON"});
}

TEST(read_catalog, a_file_cut_short_is_an_error_that_names_file_and_tensor) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  std::filesystem::resize_file(directory / "1.safetensors",
                               std::filesystem::file_size(directory / "1.safetensors") - 1);
  expect_malformed(directory, {"1.safetensors", "tensor \"a\"", "beyond the file", "7 bytes"});
}

TEST(read_catalog, a_tensor_in_two_files_is_an_error_that_names_both) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  write_file(directory / "2.safetensors", one_tensor_file("a"));
  expect_malformed(directory, {"tensor \"a\"", "\"1.safetensors\"", "again in \"2.safetensors\""});
}

TEST(read_catalog, a_config_that_is_not_json_is_an_error_that_names_it) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  for (const char* text : {"{\"model_type\": ", "", "7"}) {
    write_file(directory / "config.json", text);
    expect_malformed(directory, {"config.json: ", "expected the JSON of a model's configuration"});
  }
}

// Indexes that do not agree with the files.

TEST(read_catalog, absent_files_of_the_index_are_all_named) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  write_file(directory / index_name,
             R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"sub/3.safetensors"}})");
  expect_malformed(directory, {index_name, "expected 3 files", "2 of them are absent", "\"2.safetensors\"",
                               "\"sub/3.safetensors\""});
}

TEST(read_catalog, an_index_alone_names_what_is_absent) {
  const TemporaryDirectory directory;
  write_file(directory / index_name, R"({"weight_map":{"a":"1.safetensors"}})");
  expect_malformed(directory, {index_name, "absent", "\"1.safetensors\""});
}

TEST(read_catalog, a_file_outside_the_directory_is_an_error_and_not_opened) {
  const TemporaryDirectory directory;
  write_file(directory / "secret.safetensors", one_tensor_file("a"));
  write_file(directory / "d" / index_name, R"({"weight_map":{"a":"../secret.safetensors"}})");
  expect_error(ErrorKind::malformed, {index_name, "\"../secret.safetensors\"", "inside the directory"},
               [&] { read_catalog(directory / "d"); });
}

TEST(read_catalog, tensors_of_the_index_that_their_file_lacks_are_named) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  write_file(directory / index_name, R"({"weight_map":{"a":"1.safetensors","b":"1.safetensors"}})");
  expect_malformed(directory, {index_name, "not in its file (1)", "b in 1.safetensors"});
}

TEST(read_catalog, tensors_of_a_file_that_the_index_lacks_are_named_the_first_twenty_and_a_count) {
  const TemporaryDirectory directory;
  std::string json = "{";
  for (int i = 100; i < 125; ++i) {
    json += "\"t" + std::to_string(i) + R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)";
  }
  json.back() = '}';
  write_file(directory / "1.safetensors", safetensors_bytes(json, 0));
  write_file(directory / index_name, R"({"weight_map":{"t100":"1.safetensors"}})");
  expect_malformed(directory,
                   {index_name, "not in the index (24)", "t101 in 1.safetensors", "t120", "and 4 more"});
}

TEST(read_catalog, a_tensor_in_another_file_than_the_index_says_is_named) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  write_file(directory / "2.safetensors", one_tensor_file("b"));
  write_file(directory / index_name, R"({"weight_map":{"a":"2.safetensors","b":"1.safetensors"}})");
  expect_malformed(directory, {index_name, "a in 2.safetensors, found in 1.safetensors",
                               "b in 1.safetensors, found in 2.safetensors"});
}

TEST(read_catalog, a_tensor_in_a_second_file_of_the_index_is_named) {
  const TemporaryDirectory directory;
  write_file(directory / "1.safetensors", one_tensor_file("a"));
  write_file(directory / "2.safetensors",
             safetensors_bytes(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                               R"("b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                               0));
  write_file(directory / index_name, R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors"}})");
  expect_malformed(directory, {index_name, "a in 1.safetensors, found also in 2.safetensors"});
}

}  // namespace
}  // namespace shardwright
