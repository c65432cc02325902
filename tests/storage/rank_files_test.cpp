#include "storage/write/rank_files.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>

#include "planner/error.h"
#include "storage/files/input_file.h"
#include "storage/format/safetensors.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

SavedValue tensor(std::string name, const char* dtype, std::uint32_t element_bytes, Shape shape) {
  return {std::move(name),
          SavedValue::Kind::shards,
          {dtype, "strided", element_bytes, 0},
          std::move(shape),
          {},
          {}};
}

/// Two boxes of one matrix, a tensor of a dtype that safetensors lacks, an object between them, a vector.
struct Example {
  RankItems what;
  std::vector<std::vector<std::byte>> bytes;  // of each item
  std::vector<Shape> shapes;

  Example() {
    what.values.values = {tensor("matrix", "int32", 4, {4, 3}),
                          {"object", SavedValue::Kind::object, {}, {}, {}, {}},
                          tensor("odd", "float8_e4m3fnuz", 1, {5}),
                          tensor("vector", "bfloat16", 2, {6})};
    what.items.add(0, {0, 0}, {2, 3});
    what.items.add(0, {2, 1}, {2, 2});
    what.items.add(1, {}, {});
    what.items.add(2, {0}, {5});
    what.items.add(3, {2}, {4});
    what.object_bytes = {0, 0, 7, 0, 0};
    shapes = {{2, 3}, {2, 2}, {7}, {5}, {4}};
    const std::vector<std::size_t> sizes{24, 16, 7, 5, 8};
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      bytes.emplace_back(sizes[i]);
      for (std::size_t k = 0; k < sizes[i]; ++k) bytes[i][k] = static_cast<std::byte>(40 * i + k);
    }
  }

  TensorInMemory memory(std::size_t item) const {
    static constexpr std::array<std::uint64_t, 5> element_bytes{4, 4, 1, 1, 2};
    return {bytes[item].data(), shapes[item], contiguous_strides(shapes[item]), element_bytes[item], -1};
  }

  /// Writes the items in that order, so many at a time.
  WriteResults write(RankFiles& files, std::vector<std::size_t> order, std::size_t at_a_time) const {
    for (std::size_t first = 0; first < order.size(); first += at_a_time) {
      std::vector<std::size_t> items;
      std::vector<TensorInMemory> parts;
      for (std::size_t i = first; i < std::min(order.size(), first + at_a_time); ++i) {
        items.push_back(order[i]);
        parts.push_back(memory(order[i]));
      }
      files.write(items, parts, 1);
    }
    return files.finish();
  }
};

std::vector<std::byte> read_back(const std::filesystem::path& folder, const WriteResults& results,
                                 std::size_t item) {
  const FileRange& range = results.ranges[item];
  const InputFile file(folder / results.files[range.file].name);
  std::vector<std::byte> bytes(range.bytes.end - range.bytes.begin);
  file.read(range.bytes.begin, reinterpret_cast<char*>(bytes.data()), bytes.size());
  return bytes;
}

TEST(rank_files, items_lie_where_the_results_say_in_whatever_order_they_come) {
  const Example example;
  for (const bool single_file : {true, false}) {
    for (const std::size_t at_a_time : {1, 2, 5}) {
      for (std::vector<std::size_t> order : {std::vector<std::size_t>{0, 1, 2, 3, 4}, {4, 2, 0, 3, 1}}) {
        const TemporaryDirectory folder;
        RankFilesOptions options;
        options.single_file = single_file;
        RankFiles files(folder.path, 3, example.what, options);
        const WriteResults results = example.write(files, order, at_a_time);
        EXPECT_EQ(results.rank, 3);
        // matrix and vector; the matrix's second box; bytes
        EXPECT_EQ(results.files.size(), single_file ? 3U : 4U);
        for (const StoredFile& file : results.files) {
          EXPECT_EQ(std::filesystem::file_size(folder / file.name), file.size);
          EXPECT_EQ(file.header_bytes == 0, file.name.ends_with(".bin"));
        }
        for (std::size_t i = 0; i < order.size(); ++i)
          EXPECT_EQ(read_back(folder.path, results, i), example.bytes[i]) << i;
        // The tensor among the bytes comes before the object, as its elements may want an address.
        EXPECT_EQ(results.ranges[3].bytes.begin, 0U);
        EXPECT_EQ(results.ranges[2].bytes.begin, 5U);
        EXPECT_EQ(decode_results(encode(results)), results);
      }
    }
  }
}

TEST(rank_files, more_files_than_are_kept_open_are_written) {
  const TemporaryDirectory folder;
  RankItems what;
  std::vector<std::int32_t> values(200);
  std::iota(values.begin(), values.end(), 0);
  std::vector<std::size_t> items;
  std::vector<TensorInMemory> parts;
  for (std::uint32_t i = 0; i < values.size(); ++i) {
    what.values.values.push_back(tensor("t" + std::to_string(i), "int32", 4, {1}));
    what.items.add(i, {0}, {1});
    items.push_back(i);
    parts.push_back({reinterpret_cast<const std::byte*>(&values[i]), {1}, {1}, 4, -1});
  }
  what.object_bytes.resize(values.size());
  RankFilesOptions options;
  options.single_file = false;
  options.name = [](const std::string& fqn, std::size_t number) {
    return fqn + "-" + std::to_string(number);
  };
  RankFiles files(folder.path, 0, what, options);
  files.write(items, parts, 2);
  const WriteResults results = files.finish();
  ASSERT_EQ(results.files.size(), values.size());
  EXPECT_EQ(results.files[7].name, "t7-7");
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::int32_t found = 0;
    std::memcpy(&found, read_back(folder.path, results, i).data(), sizeof found);
    EXPECT_EQ(found, values[i]);
  }
}

void expect_refused(const char* words, const std::function<void()>& work) {
  try {
    work();
    ADD_FAILURE() << "expected an error: " << words;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::argument);
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

TEST(rank_files, an_item_that_is_not_written_or_written_twice_is_refused) {
  const Example example;
  const TemporaryDirectory folder;
  RankFiles files(folder.path, 0, example.what, {});
  files.write(std::vector<std::size_t>{0}, std::vector<TensorInMemory>{example.memory(0)}, 1);
  expect_refused("matrix: is written twice", [&] {
    files.write(std::vector<std::size_t>{0}, std::vector<TensorInMemory>{example.memory(0)}, 1);
  });
  expect_refused("matrix: has not been written", [&] { files.finish(); });
}

TEST(rank_files, one_name_for_two_files_is_refused) {
  const Example example;
  const TemporaryDirectory folder;
  RankFilesOptions options;
  options.name = [](const std::string&, std::size_t) { return std::string("same"); };
  expect_refused("\"same\"", [&] { RankFiles(folder.path, 0, example.what, options); });
}

}  // namespace
}  // namespace shardwright
