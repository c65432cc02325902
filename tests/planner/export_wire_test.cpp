#include "planner/save/export_wire.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "planner/save/save_wire.h"
#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

std::string random_bytes(Random& random) {
  std::string bytes(static_cast<std::size_t>(random.between(0, 30)), ' ');
  for (char& byte : bytes) byte = static_cast<char>(random.between(0, 255));
  return bytes;
}

std::vector<std::uint32_t> random_numbers(Random& random) {
  std::vector<std::uint32_t> numbers;
  for (std::int64_t n = random.between(0, 3); n > 0; --n)
    numbers.push_back(static_cast<std::uint32_t>(random.between(0, 1 << 30)));
  return numbers;
}

std::vector<BlockColumn> random_columns(Random& random) {
  std::vector<BlockColumn> columns;
  for (std::int64_t c = random.between(0, 4); c > 0; --c) {
    columns.push_back({"w" + std::to_string(c), random.between(0, 1 << 20), random.between(0, 1 << 20), {}});
    for (std::int64_t r = random.between(0, 9); r > 0; --r)
      columns.back().scales.push_back(static_cast<std::uint8_t>(random.between(0, 255)));
  }
  return columns;
}

std::vector<std::int64_t> rising_places(Random& random) {
  std::vector<std::int64_t> places;
  std::int64_t place = random.between(0, std::int64_t{1} << 40);
  for (std::int64_t n = random.between(0, 4); n > 0; --n, place += random.between(1, 1 << 30))
    places.push_back(place);
  return places;
}

std::vector<WeightNumbers> random_weight_numbers(Random& random) {
  std::vector<WeightNumbers> all;
  for (std::int64_t w = random.between(0, 3); w > 0; --w) {
    WeightNumbers& numbers = all.emplace_back();
    numbers.weight = "w" + std::to_string(w);
    numbers.largest = static_cast<float>(random.between(0, 1000)) / 7;
    numbers.blocks = rising_places(random);
    for (const std::int64_t block : numbers.blocks)
      numbers.magnitudes.push_back(static_cast<float>(block) / 3);
    numbers.elements = rising_places(random);
    for (const std::int64_t element : numbers.elements)
      numbers.values.push_back(-static_cast<float>(element));
    numbers.wanted = rising_places(random);
  }
  return all;
}

ExportHoldings random_holdings(Random& random) {
  return {random_bytes(random),
          random_numbers(random),
          random_columns(random),
          {},
          random_weight_numbers(random)};
}

ExportShare random_share(Random& random) {
  ExportShare share{random_bytes(random),
                    random_bytes(random),
                    random_bytes(random),
                    random_columns(random),
                    random_numbers(random),
                    random_weight_numbers(random),
                    {}};
  for (std::int64_t n = random.between(0, 3); n > 0; --n)
    share.largest.push_back(static_cast<float>(random.between(0, 1000)) / 3);
  return share;
}

TEST(export_wire, what_was_encoded_is_decoded) {
  Random random(1);
  for (int round = 0; round < 200; ++round) {
    const ExportHoldings holdings = random_holdings(random);
    ASSERT_EQ(decode_holdings(encode_holdings(holdings)), holdings);
    const ExportShare share = random_share(random);
    ASSERT_EQ(decode_share(encode_share(share)), share);
  }
}

TEST(export_wire, tensors_travel_as_values) {
  Random random(3);
  for (int round = 0; round < 100; ++round) {
    std::vector<SavedTensor> tensors;
    for (std::int64_t t = random.between(0, 6); t > 0; --t) {
      const DType dtype = random.one_of<DType>({DType::BF16, DType::F32, DType::I64, DType::F8_E4M3});
      tensors.push_back({"t" + std::to_string(t), dtype, random_shape(random, random.between(0, 3), 0, 9)});
    }
    ASSERT_EQ(decode_tensors(encode_tensors(tensors)), tensors);
  }
  SavedValues values;
  values.values = {{"w", SavedValue::Kind::shards, {"float8_e4m3fnuz", "strided", 1, 0}, {4}, {}, {}}};
  expect_error(ErrorKind::malformed, {"w has dtype float8_e4m3fnuz"},
               [&] { decode_tensors(encode(values)); });
}

TEST(export_wire, damaged_bytes_are_errors_or_another_message_and_nothing_worse) {
  Random random(2);
  int refused = 0;
  const auto survive = [&](const auto& decode) {
    try {
      decode();
    } catch (const Error& error) {
      ASSERT_EQ(static_cast<int>(error.kind), static_cast<int>(ErrorKind::malformed)) << error.what();
      ++refused;
    }
  };
  for (int round = 0; round < 300; ++round) {
    std::string bytes = encode_share(random_share(random));
    std::string holdings = encode_holdings(random_holdings(random));
    for (std::string* one : {&bytes, &holdings}) {
      if (random.once_in(2)) one->resize(static_cast<std::size_t>(random.between(0, std::ssize(*one))));
      for (std::int64_t i = random.between(0, 3); i > 0 && !one->empty(); --i)
        (*one)[static_cast<std::size_t>(random.between(0, std::ssize(*one) - 1))] =
            static_cast<char>(random.between(0, 255));
    }
    survive([&] { decode_share(bytes); });
    survive([&] { decode_holdings(holdings); });
  }
  EXPECT_GT(refused, 100);
}

TEST(export_wire, a_largest_magnitude_is_a_number) {
  for (const float wrong : {-1.0F, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    ExportShare share;
    share.largest = {1, wrong};
    expect_error(ErrorKind::malformed, {"a largest magnitude that is none"},
                 [&] { decode_share(encode_share(share)); });
  }
}

TEST(export_wire, what_no_rank_of_this_version_says_is_an_error) {
  const auto refused = [](const std::string& bytes, std::initializer_list<std::string_view> texts) {
    expect_error(ErrorKind::malformed, texts, [&] { decode_holdings(bytes); });
    expect_error(ErrorKind::malformed, {"the same version of shardwright"}, [&] { decode_holdings(bytes); });
  };
  refused(encode_holdings({"", {}, {{"v", -1, 0, {}}}}), {"v has a negative block"});
  refused(encode_holdings({"", {}, {{"v", 0, -1, {}}}}), {"v has a negative block"});
  std::string bytes;
  bytes = encode_holdings({"state", {}, {}});
  ASSERT_EQ(bytes[1], 3);  // the version, the first field
  bytes[1] = 4;
  refused(bytes, {"of version 3, found version 4"});
  ExportHoldings holdings{"state", {}, {}};
  holdings.numbers = {{"w", 0, {7}, {}}};
  refused(encode_holdings(holdings), {"w has another number of places than of numbers"});
  holdings.numbers = {{"w", 0, {7, 3}, {1, 1}}};
  refused(encode_holdings(holdings), {"w has a place beyond all that there are"});
  refused("no message", {});
}

}  // namespace
}  // namespace shardwright
