#include <gtest/gtest.h>

#include <algorithm>

#include "storage/format/safetensors.h"
#include "storage/tools/random.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

struct RandomNumbers {
  std::uint64_t key;
  std::uint64_t next = 0;
  std::size_t below(std::size_t bound) { return random_word(key, next++) % bound; }
};

/// What a Catalog promises about every tensor.
void expect_checked(const SafetensorsHeader& header, std::uint64_t file_size, const std::string& json) {
  std::uint64_t total = 0;
  std::vector<std::string> names;
  for (const SourceTensor& tensor : header.tensors) {
    ASSERT_LE(tensor.begin, tensor.end) << json;
    ASSERT_LE(tensor.end, file_size) << json;
    ASSERT_EQ(tensor.end - tensor.begin, stored_bytes(tensor.dtype, tensor.shape)) << json;
    ASSERT_EQ(tensor.offset.size(), tensor.shape.size()) << json;
    total += tensor.end - tensor.begin;
    names.push_back(tensor.name);
  }
  ASSERT_EQ(8 + json.size() + total, file_size) << json;
  std::sort(names.begin(), names.end());
  ASSERT_EQ(std::adjacent_find(names.begin(), names.end()), names.end()) << json;
}

TEST(safetensors_fuzz, a_mutated_header_is_an_error_or_a_checked_header) {
  const std::string seed_text =
      R"({"__metadata__":{"DCP_SHARDING_INFO":"{\"a.weight\":{\"saved_offsets\":[0,4]},\"b\":{\"saved_offsets\":[0]},)"
      R"(\"c\":{\"saved_offsets\":[]}}","format":"pt"},"a.weight":{"dtype":"BF16","shape":[3,5],"data_offsets":[0,30]},)"
      R"("b":{"dtype":"F4","shape":[16],"data_offsets":[30,38]},"c":{"dtype":"F32","shape":[],"data_offsets":[38,42]}})";
  constexpr std::uint64_t data_bytes = 42;
  const std::string_view pieces[] = {"{",
                                     "}",
                                     "[",
                                     "]",
                                     ",",
                                     ":",
                                     "\"",
                                     "0",
                                     "-1",
                                     "1e9",
                                     "9223372036854775807",
                                     "18446744073709551615",
                                     "null",
                                     "\"dtype\":\"U8\"",
                                     "\xFF",
                                     "\\u0000",
                                     "[[[["};
  RandomNumbers random{random_key(0, "safetensors_fuzz")};
  int accepted = 0;
  int refused = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string json = seed_text;
    for (std::size_t count = 1 + random.below(3); count > 0; --count) {
      const std::size_t at = random.below(json.size());
      switch (random.below(6)) {
        case 0:
          json[at] = static_cast<char>(random.below(256));
          break;
        case 1:
          json[at] = static_cast<char>('0' + random.below(10));
          break;
        case 2:
          json.erase(at, 1 + random.below(8));
          break;
        case 3:
          json.insert(at, pieces[random.below(std::size(pieces))]);
          break;
        case 4:
          json.insert(at, json.substr(random.below(json.size()), random.below(60)));
          break;
        default:
          json.resize(at + 1);
          break;
      }
      if (json.empty()) json = "{";
    }
    const std::uint64_t file_size = 8 + json.size() + data_bytes;
    try {
      expect_checked(parse_safetensors_header(json, file_size, "fuzz"), file_size, json);
      ++accepted;
    } catch (const Error& error) {
      ASSERT_EQ(static_cast<int>(error.kind), static_cast<int>(ErrorKind::malformed)) << error.what();
      ++refused;
    }
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(accepted, 100) << "the mutations are too wild to reach far";
  EXPECT_GT(refused, 1000);
}

}  // namespace
}  // namespace shardwright
