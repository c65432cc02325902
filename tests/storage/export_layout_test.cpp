#include "storage/write/export_layout.h"

#include <gtest/gtest.h>

#include <map>

#include "planner/names/companions.h"
#include "storage/format/hf_index.h"
#include "storage/format/safetensors.h"
#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

std::vector<SourceTensor> random_tensors(Random& random) {
  std::vector<SourceTensor> tensors;
  for (std::int64_t t = random.between(1, 12); t > 0; --t) {
    SourceTensor tensor;
    tensor.name = "t" + std::to_string(t) + ".weight";
    tensor.dtype = random.one_of<DType>({DType::BF16, DType::F32, DType::U8, DType::F8_E4M3});
    tensor.shape = random_shape(random, random.between(0, 3), random.once_in(9) ? 0 : 1, 9);
    tensor.offset = Shape(tensor.shape.size(), 0);
    tensors.push_back(tensor);
    if (tensor.dtype != DType::F8_E4M3) continue;
    tensor.name += "_scale_inv";
    tensor.dtype = DType::U8;
    tensors.push_back(tensor);
  }
  return tensors;
}

std::uint64_t bytes_in(const SourceTensor& tensor) {
  return static_cast<std::uint64_t>(volume(tensor.shape) * bytes_of(tensor.dtype));
}

std::string name_of_file(std::size_t number, std::size_t count) {
  const auto five = [](std::size_t n) {
    return std::string(5 - std::to_string(n).size(), '0') + std::to_string(n);
  };
  return "model-" + five(number) + "-of-" + five(count) + ".safetensors";
}

/// Headers, catalog and index say the same, which is this.
void expect_layout(const ExportLayout& layout, const std::vector<SourceTensor>& tensors,
                   const std::vector<std::size_t>& file_of, const std::vector<std::string>& names) {
  ASSERT_EQ(layout.headers.size(), names.size());
  ASSERT_EQ(layout.catalog.files.size(), names.size());
  ASSERT_EQ(layout.catalog.tensors.size(), tensors.size());
  std::vector<std::vector<std::size_t>> in_file(names.size());
  std::uint64_t total = 0;
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    in_file[file_of[t]].push_back(t);
    total += bytes_in(tensors[t]);
  }
  EXPECT_EQ(layout.total_size, total);
  for (std::size_t f = 0; f < names.size(); ++f) {
    EXPECT_EQ(layout.catalog.files[f].name, names[f]);
    const std::string& bytes = layout.headers[f];
    ASSERT_EQ(bytes.size() % 8, 0u);
    const SafetensorsHeader header =
        parse_safetensors_header(std::string_view(bytes).substr(8), layout.catalog.files[f].size, names[f]);
    EXPECT_EQ(header.metadata.at("format"), "pt");  // transformers looks for it
    ASSERT_EQ(header.tensors.size(), in_file[f].size());
    std::uint64_t at = bytes.size();
    for (std::size_t i = 0; i < in_file[f].size(); ++i) {
      const SourceTensor& expected = tensors[in_file[f][i]];
      const SourceTensor& found = header.tensors[i];
      EXPECT_EQ(found.name, expected.name);
      EXPECT_EQ(found.dtype, expected.dtype);
      EXPECT_EQ(found.shape, expected.shape);
      EXPECT_EQ(found.begin, at);
      at += bytes_in(expected);
      EXPECT_EQ(found.end, at);
      const SourceTensor& listed = layout.catalog.find(expected.name).front();
      EXPECT_EQ(std::tuple(listed.file, listed.begin, listed.end), std::tuple(f, found.begin, found.end));
    }
    EXPECT_EQ(layout.catalog.files[f].size, at);
  }
  const HfIndex index = parse_hf_index(hf_index_of(layout), "index");
  EXPECT_NE(hf_index_of(layout).find("\"total_size\": " + std::to_string(total)), std::string::npos)
      << hf_index_of(layout);
  ASSERT_EQ(index.entries.size(), tensors.size());
  std::map<std::string, std::string> files;
  for (const HfIndex::Entry& entry : index.entries) files[entry.tensor] = index.files[entry.file];
  for (std::size_t t = 0; t < tensors.size(); ++t) EXPECT_EQ(files[tensors[t].name], names[file_of[t]]);
}

TEST(export_layout, a_file_is_filled_until_the_next_tensor_would_be_too_much) {
  Random random(1);
  for (int round = 0; round < 300; ++round) {
    const std::vector<SourceTensor> tensors = random_tensors(random);
    const auto most = static_cast<std::uint64_t>(random.between(1, 2000));
    std::vector<std::size_t> file_of;
    std::size_t file = 0;
    std::uint64_t filled = 0;
    for (std::size_t t = 0; t < tensors.size(); ++t) {
      if (t > 0 && filled + bytes_in(tensors[t]) > most) {
        ++file;
        filled = 0;
      }
      filled += bytes_in(tensors[t]);
      file_of.push_back(file);
    }
    std::vector<std::string> names;
    for (std::size_t f = 0; f <= file; ++f) names.push_back(name_of_file(f + 1, file + 1));
    expect_layout(lay_out("/to", tensors, most), tensors, file_of, names);
  }
}

TEST(export_layout, a_mapping_says_which_file_and_scales_go_with_their_weights) {
  Random random(2);
  for (int round = 0; round < 300; ++round) {
    const std::vector<SourceTensor> tensors = random_tensors(random);
    std::map<std::string, int> numbers;
    for (const SourceTensor& tensor : tensors)
      numbers.emplace(weight_name_of(tensor.name), static_cast<int>(random.between(1, 4)));
    int last = 0;
    std::map<int, std::size_t> position;  // numbers without a tensor have no file
    for (const auto& [name, number] : numbers) {
      last = std::max(last, number);
      position[number];
    }
    std::vector<std::string> names;
    for (auto& [number, at] : position) {
      at = names.size();
      names.push_back(name_of_file(static_cast<std::size_t>(number), static_cast<std::size_t>(last)));
    }
    std::vector<std::size_t> file_of;
    for (const SourceTensor& tensor : tensors)
      file_of.push_back(position.at(numbers.at(std::string(weight_name_of(tensor.name)))));
    expect_layout(lay_out("/to", tensors, 1, numbers), tensors, file_of, names);
  }
}

TEST(export_layout, a_mapping_that_lacks_a_tensor_or_counts_from_zero_is_an_error_that_names_it) {
  Random random(3);
  std::vector<SourceTensor> tensors = random_tensors(random);
  tensors.front().name = "first";
  std::map<std::string, int> numbers;
  for (const SourceTensor& tensor : tensors) numbers[tensor.name] = 1;
  numbers["first"] = 0;
  expect_error(ErrorKind::argument, {"fqn_to_index_mapping", "\"first\"", "found 0"},
               [&] { lay_out("/to", tensors, 1, numbers); });
  numbers.erase("first");
  expect_error(ErrorKind::argument, {"fqn_to_index_mapping", "\"first\"", "found none"}, [&] {
    numbers["other"] = 1;
    lay_out("/to", tensors, 1, numbers);
  });
}

TEST(export_layout, two_tensors_of_one_name_are_an_error_that_names_it) {
  SourceTensor tensor;
  tensor.name = "w";
  tensor.shape = {2};
  tensor.offset = {0};
  expect_error(ErrorKind::mismatch, {"two tensors", "\"w\""}, [&] { lay_out("/to", {tensor, tensor}, 1); });
}

}  // namespace
}  // namespace shardwright
