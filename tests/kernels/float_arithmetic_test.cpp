#include "kernels/float_arithmetic.h"

#include <gtest/gtest.h>

#include <vector>

namespace shardwright {
namespace {

bool is_nan(std::uint32_t bits) { return (bits & 0x7FFFFFFF) > 0x7F800000; }

template <FloatFormat format>
void expect_values_of_the_definition() {
  constexpr int width = 1 + format.exponent_bits + format.mantissa_bits;
  for (std::uint32_t bits = 0; bits < 1U << width; ++bits) {
    const ExactNumber exact = exact_value<format>(bits);
    const auto expected = static_cast<std::uint32_t>(nearest<float32>(exact));
    const std::uint32_t found = float_bits<format>(bits);
    if (exact.kind == ExactNumber::Kind::not_a_number) {
      ASSERT_TRUE(is_nan(found)) << std::hex << bits;
      ASSERT_EQ(found >> 31, expected >> 31) << std::hex << bits;
      continue;
    }
    ASSERT_EQ(found, expected) << std::hex << bits;
    if constexpr (format.exponent_bits < 8) {
      if (exact.kind == ExactNumber::Kind::finite) {
        ASSERT_EQ(bits_of_float(finite_value<format>(bits)), expected) << std::hex << bits;
      }
    }
  }
}

TEST(FloatArithmetic, GivesEveryNumberOfEveryNarrowFormatItsValue) {
  expect_values_of_the_definition<e2m1>();
  expect_values_of_the_definition<e4m3fn>();
  expect_values_of_the_definition<e5m2>();
  expect_values_of_the_definition<float16>();
  expect_values_of_the_definition<bfloat16>();
}

TEST(FloatArithmetic, GivesEveryScaleByteItsValue) {
  for (unsigned scale = 0; scale < 256; ++scale) {
    const ExactNumber one{1, 0, false, ExactNumber::Kind::finite};
    const auto byte = static_cast<std::uint8_t>(scale);
    ASSERT_EQ(float_bits_of_e8m0(byte), nearest<float32>(scaled(one, byte))) << scale;
  }
}

template <FloatFormat format>
void expect_specials_found() {
  for (std::uint32_t code = 0; code < 256; ++code) {
    const bool is_special = exact_value<format>(code).kind != ExactNumber::Kind::finite;
    for (const std::uint32_t others : {0x00000000U, 0x80808080U, 0x7B7B7B7BU, 0xFBFBFBFBU}) {
      for (int at = 0; at < 32; at += 8) {
        const std::uint32_t word = (others & ~(0xFFU << at)) | code << at;
        ASSERT_EQ(has_special<format>(word), is_special) << std::hex << word;
      }
    }
  }
}

TEST(FloatArithmetic, FindsInfinitiesAndNaNsAmongFourNumbers) {
  expect_specials_found<e4m3fn>();
  expect_specials_found<e5m2>();
}

template <FloatFormat element, FloatFormat to>
void expect_products_with_powers_of_two() {
  for (std::uint32_t scale = 0; scale < 256; ++scale) {
    for (std::uint32_t code = 0; code < 256; ++code) {
      const auto byte = static_cast<std::uint8_t>(scale);
      ASSERT_EQ(nearest_of_float<to>(scaled_float_bits(float_bits<element>(code), float_bits_of_e8m0(byte))),
                nearest<to>(scaled(exact_value<element>(code), byte)))
          << std::hex << code << " times " << scale;
    }
  }
}

TEST(FloatArithmetic, RoundsEveryMxfp8ProductOnceToBF16F16AndF32) {
  expect_products_with_powers_of_two<e4m3fn, bfloat16>();
  expect_products_with_powers_of_two<e4m3fn, float16>();
  expect_products_with_powers_of_two<e4m3fn, float32>();
  expect_products_with_powers_of_two<e5m2, bfloat16>();
  expect_products_with_powers_of_two<e5m2, float16>();
  expect_products_with_powers_of_two<e5m2, float32>();
}

template <FloatFormat element>
void expect_products_with_floats(std::uint32_t scale) {
  for (std::uint32_t code = 0; code < 256; ++code) {
    ASSERT_EQ(scaled_float_bits(float_bits<element>(code), scale),
              nearest<float32>(scaled(exact_value<element>(code), exact_value<float32>(scale))))
        << std::hex << code << " times " << scale;
  }
}

TEST(FloatArithmetic, RoundsProductsWithFloatScalesAsTheDefinitionDoes) {
  for (std::uint32_t upper = 0; upper < 0x10000; upper += 7) {
    for (const std::uint32_t lower : {0x0000U, 0x0001U, 0x8000U, 0xFFFFU}) {
      expect_products_with_floats<e4m3fn>(upper << 16 | lower);
      expect_products_with_floats<e5m2>(upper << 16 | lower);
    }
  }
}

void expect_rounded(std::uint32_t bits) {
  const ExactNumber exact = exact_value<float32>(bits);
  ASSERT_EQ(nearest_of_float<bfloat16>(bits), nearest<bfloat16>(exact)) << std::hex << bits;
  ASSERT_EQ(nearest_of_float<float16>(bits), nearest<float16>(exact)) << std::hex << bits;
  ASSERT_EQ(nearest_of_float<float32>(bits), nearest<float32>(exact)) << std::hex << bits;
}

TEST(FloatArithmetic, RoundsFloatsAroundTiesToEven) {
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    for (const std::uint32_t lower :
         {0x0000U, 0x0001U, 0x0FFFU, 0x1000U, 0x1001U, 0x3000U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU}) {
      expect_rounded(upper << 16 | lower);
    }
  }
  for (std::uint64_t bits = 0; bits < std::uint64_t{1} << 32; bits += 4099) {
    expect_rounded(static_cast<std::uint32_t>(bits));
  }
}

TEST(FloatArithmetic, EncodesEveryBF16NumberWithEveryScale) {
  for (std::uint32_t upper = 0; upper < 0x10000; ++upper) {
    const ExactNumber number = exact_value<bfloat16>(upper);
    for (unsigned scale = 0; scale < 255; ++scale) {
      const auto byte = static_cast<std::uint8_t>(scale);
      ASSERT_EQ(encoded_float(upper << 16, byte), encoded(number, byte))
          << std::hex << upper << " / " << scale;
    }
  }
}

TEST(FloatArithmetic, FindsTheSmallestScaleOfAnyMagnitude) {
  for (std::uint32_t upper = 0; upper < 0x7F80; ++upper) {
    for (const std::uint32_t lower : {0x0000U, 0x0001U, 0xFFFFU}) {
      const std::uint32_t bits = upper << 16 | lower;
      ASSERT_EQ(smallest_scale_of_float(bits), smallest_scale(exact_value<float32>(bits)))
          << std::hex << bits;
    }
  }
  EXPECT_EQ(smallest_scale_of_float(0x7F800000), smallest_scale(exact_value<float32>(0x7F800000)));
}

TEST(FloatArithmetic, EncodesFloatsAroundTiesToEven) {
  for (std::uint32_t upper = 0; upper < 0x10000; upper += 2) {
    for (const std::uint32_t lower : {0x0001U, 0x7FFFU, 0x8000U, 0xFFFFU}) {
      const std::uint32_t bits = upper << 16 | lower;
      for (const std::uint8_t scale : {0, 1, 64, 120, 126, 127, 128, 140, 200, 253, 254}) {
        ASSERT_EQ(encoded_float(bits, scale), encoded(exact_value<float32>(bits), scale))
            << std::hex << bits << " / " << int{scale};
      }
    }
  }
}

}  // namespace
}  // namespace shardwright
