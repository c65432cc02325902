#include "storage/tools/generate_values.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "storage/tools/random.h"

namespace shardwright {
namespace {

std::string values(DType dtype, std::size_t bytes, std::uint64_t key = 7) {
  std::string text(bytes, '\0');
  fill_random({dtype}, key, 0, text);
  return text;
}

std::array<int, 256> count_bytes(const std::string& text) {
  std::array<int, 256> counts{};
  for (const char byte : text) ++counts[static_cast<std::uint8_t>(byte)];
  return counts;
}

TEST(generate_values, random_words_are_those_of_splitmix64) {
  // The first outputs of the generator with a seed of 1234567, as its authors' reference program prints them.
  EXPECT_EQ(random_word(1234567, 0), 6457827717110365317u);
  EXPECT_EQ(random_word(1234567, 1), 3203168211198807973u);
  EXPECT_EQ(random_word(1234567, 2), 9817491932198370423u);
}

TEST(generate_values, keys_differ_by_seed_and_by_name) {
  EXPECT_NE(random_key(0, "a"), random_key(1, "a"));
  EXPECT_NE(random_key(0, "a"), random_key(0, "b"));
}

TEST(generate_values, fp8_takes_every_code_but_nan) {
  const std::array<int, 256> counts = count_bytes(values(DType::F8_E4M3, 1 << 16));
  for (int code = 0; code < 256; ++code) {
    EXPECT_EQ(counts[code] == 0, code == 0x7F || code == 0xFF) << code;
  }
}

TEST(generate_values, scales_are_mostly_near_one_take_every_byte_but_nan) {
  const std::array<int, 256> counts = count_bytes(values(DType::U8, 1 << 17));
  int near_one = 0;
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(counts[byte] == 0, byte == 255) << byte;
    if (byte >= 100 && byte <= 140) near_one += counts[byte];
  }
  EXPECT_GT(near_one, (1 << 17) * 9 / 10);
}

TEST(generate_values, wide_floats_are_finite_of_both_signs_and_of_every_exponent) {
  const std::string bf16 = values(DType::BF16, 1 << 17);
  std::vector<std::uint16_t> halves(bf16.size() / 2);
  std::memcpy(halves.data(), bf16.data(), bf16.size());
  std::array<int, 512> exponents{};
  for (const std::uint16_t half : halves) ++exponents[half >> 7];
  for (int i = 0; i < 512; ++i) EXPECT_EQ(exponents[i] == 0, (i & 255) == 255) << i;

  const std::string f32 = values(DType::F32, 1 << 17);
  std::vector<float> floats(f32.size() / 4);
  std::memcpy(floats.data(), f32.data(), f32.size());
  for (const float number : floats) ASSERT_TRUE(std::isfinite(number));
}

TEST(generate_values, scales_of_fp8_are_as_other_numbers_but_never_negative) {
  for (const DType dtype : {DType::BF16, DType::F32}) {
    const NamedShape scales{"a.weight_scale_inv", dtype, {4, 4}};
    ASSERT_EQ(any_values(scales).kind, RandomValues::Kind::magnitudes);
    std::string signed_numbers(1 << 12, '\0');
    std::string magnitudes = signed_numbers;
    fill_random({dtype}, 7, 0, signed_numbers);
    fill_random(any_values(scales), 7, 0, magnitudes);
    const std::size_t bytes = static_cast<std::size_t>(bytes_of(dtype));
    for (std::size_t i = bytes - 1; i < magnitudes.size(); i += bytes)
      signed_numbers[i] = static_cast<char>(signed_numbers[i] & 0x7F);
    EXPECT_EQ(magnitudes, signed_numbers);
  }
}

TEST(generate_values, scales_of_packed_elements_are_positive_and_none_is_extreme) {
  const auto scales = [](DType dtype) {
    std::string text(1 << 16, '\0');
    fill_random({dtype, RandomValues::Kind::scales}, 7, 0, text);
    return text;
  };
  for (const DType dtype : {DType::U8, DType::F8_E8M0}) {
    const std::array<int, 256> counts = count_bytes(scales(dtype));
    for (int byte = 0; byte < 256; ++byte) EXPECT_EQ(counts[byte] > 0, byte >= 100 && byte <= 140) << byte;
  }
  const std::array<int, 256> counts = count_bytes(scales(DType::F8_E4M3));
  for (int byte = 0; byte < 256; ++byte) EXPECT_EQ(counts[byte] > 0, byte >= 1 && byte <= 0x7E) << byte;
  const std::string bf16 = scales(DType::BF16);
  for (std::size_t i = 0; i < bf16.size(); i += 2) {
    const auto bits = static_cast<std::uint32_t>(static_cast<std::uint8_t>(bf16[i])) << 16 |
                      static_cast<std::uint32_t>(static_cast<std::uint8_t>(bf16[i + 1])) << 24;
    const auto number = std::bit_cast<float>(bits);
    ASSERT_TRUE(number >= 0x1p-10F && number < 0x1p-6F) << number;
  }
}

TEST(generate_values, a_tensor_is_the_same_however_it_is_cut) {
  for (const auto kind : {RandomValues::Kind::any, RandomValues::Kind::normal}) {
    for (const DType dtype : {DType::F8_E4M3, DType::U8, DType::BF16, DType::F32}) {
      const RandomValues wanted{dtype, kind, 1, 0.1F};
      std::string whole(100, '\0');
      fill_random(wanted, 7, 0, whole);
      std::string pieces(100, '\0');
      fill_random(wanted, 7, 0, std::span(pieces).first(8));
      fill_random(wanted, 7, 8, std::span(pieces).subspan(8, 56));
      fill_random(wanted, 7, 64, std::span(pieces).subspan(64));
      EXPECT_EQ(pieces, whole);
      std::string other(100, '\0');
      fill_random(wanted, 8, 0, other);
      EXPECT_NE(other, whole);
    }
  }
}

struct Moments {
  double mean = 0;
  double deviation = 0;
};

Moments moments(const std::vector<double>& numbers) {
  double sum = 0;
  double squares = 0;
  for (const double number : numbers) {
    sum += number;
    squares += number * number;
  }
  const auto count = static_cast<double>(numbers.size());
  return {sum / count, std::sqrt(squares / count - sum / count * sum / count)};
}

TEST(generate_values, normal_numbers_have_the_mean_and_the_deviation) {
  constexpr std::size_t count = 1 << 16;
  const auto expect_near = [](const std::vector<double>& numbers, double mean, double deviation) {
    EXPECT_NEAR(moments(numbers).mean, mean, deviation / 50);
    EXPECT_NEAR(moments(numbers).deviation, deviation, deviation / 50);
  };
  std::string text(count * 4, '\0');
  fill_random({DType::F32, RandomValues::Kind::normal, 1, 0.02F}, 7, 0, text);
  std::vector<float> floats(count);
  std::memcpy(floats.data(), text.data(), text.size());
  expect_near({floats.begin(), floats.end()}, 1, 0.02);

  text.resize(count * 2);
  fill_random({DType::BF16, RandomValues::Kind::normal, 0, 0.02F}, 7, 0, text);
  std::vector<double> halves;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, text.data() + 2 * i, 2);
    halves.push_back(std::bit_cast<float>(std::uint32_t{half} << 16));
  }
  expect_near(halves, 0, 0.02);

  text.resize(count);
  fill_random({DType::F8_E4M3, RandomValues::Kind::normal, 0, 128}, 7, 0, text);
  std::vector<double> codes;
  for (const char byte : text) {  // e4m3, as OCP's document defines it
    const auto code = static_cast<std::uint8_t>(byte);
    const int exponent = code >> 3 & 15;
    const double magnitude =
        exponent == 0 ? std::ldexp(code & 7, -9) : std::ldexp(8 + (code & 7), exponent - 10);
    ASSERT_NE(code & 0x7F, 0x7F);
    codes.push_back(code >= 0x80 ? -magnitude : magnitude);
  }
  expect_near(codes, 0, 128);
}

TEST(generate_values, a_scale_is_the_one_that_makes_its_weight_a_trained_one) {
  const auto mean_of = [](const NamedShape& scale, DType weight) {
    const auto values = weight == DType::U8 ? SampleValues::codes : SampleValues::any;
    const NamedShape before{"layer.proj.weight", weight, {64, 64}, values};
    return trained_values(scale, &before).mean;
  };
  EXPECT_FLOAT_EQ(mean_of({"layer.proj.weight_scale_inv", DType::F32, {1, 1}}, DType::F8_E4M3) * 128, 0.02F);
  EXPECT_FLOAT_EQ(mean_of({"layer.proj.weight_scale", DType::F8_E4M3, {64, 4}}, DType::U8) *
                      mean_of({"layer.proj.weight_scale_2", DType::F32, {}}, DType::U8) * 3,
                  0.02F);
  const NamedShape norm{"layer.norm.weight", DType::BF16, {64}};
  EXPECT_EQ(trained_values(norm, nullptr).mean, 1);
  const NamedShape other{"layer.proj.weight", DType::BF16, {64, 64}};
  EXPECT_EQ(trained_values(other, nullptr).mean, 0);
}

}  // namespace
}  // namespace shardwright
