#pragma once

// What number_formats.h defines, by F32 arithmetic where that is exact or rounds once: for kernels that have
// no time for the definition. The same on a host in the default floating-point mode and on a CUDA device,
// whose compiler must neither flush subnormals (-ftz=false) nor contract.
// tests/kernels/float_arithmetic_test.cpp holds it against the definition.

#include <cstdint>
#include <cstring>

#include "kernels/number_formats.h"

namespace shardwright {

SHARDWRIGHT_HOST_DEVICE inline float float_of_bits(std::uint32_t bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

SHARDWRIGHT_HOST_DEVICE inline std::uint32_t bits_of_float(float number) {
  std::uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

/// The F32 bits of the number that an e8m0 byte stands for.
SHARDWRIGHT_HOST_DEVICE constexpr std::uint32_t float_bits_of_e8m0(std::uint8_t scale) {
  if (scale == 255) return 0x7FC00000;
  return scale == 0 ? 0x00400000 : std::uint32_t{scale} << 23;  // 2^-127 is subnormal
}

/// The value of a finite number of a format of at most 16 bits and a smaller exponent than F32's. What lies
/// beyond the format's own bits must be zero.
template <FloatFormat format>
SHARDWRIGHT_HOST_DEVICE inline float finite_value(std::uint32_t bits) {
  static_assert(format.exponent_bits < 8);
  constexpr int width = 1 + format.exponent_bits + format.mantissa_bits;
  constexpr int bias = (1 << (format.exponent_bits - 1)) - 1;
  // The fields move to where F32 has them. Its exponent then is too small by the difference of the biases, in
  // subnormal numbers as well, which the multiplication makes good. An arithmetic shift leaves the sign
  // alone.
  constexpr std::uint32_t mask = 0x80000000U | (((1U << (width - 1)) - 1) << (23 - format.mantissa_bits));
  const auto top = static_cast<std::int32_t>(bits << (32 - width));
  const auto fields = static_cast<std::uint32_t>(top >> (8 - format.exponent_bits)) & mask;
  return float_of_bits(fields) * float_of_bits(static_cast<std::uint32_t>(127 + 127 - bias) << 23);
}

/// True if one of the four e4m3 or e5m2 numbers in a word is an infinity or a NaN.
template <FloatFormat format>
SHARDWRIGHT_HOST_DEVICE constexpr bool has_special(std::uint32_t four) {
  static_assert(1 + format.exponent_bits + format.mantissa_bits == 8);
  // The codes from the first that is not finite on are those that carry into the place of the sign.
  constexpr std::uint32_t first =
      format.has_infinity ? ((1U << format.exponent_bits) - 1) << format.mantissa_bits : 0x7F;
  return (((four & 0x7F7F7F7FU) + 0x01010101U * (0x80 - first)) & 0x80808080U) != 0;
}

/// The F32 bits of any number of a format of at most 16 bits: exact, a NaN stays one and keeps its sign.
template <FloatFormat format>
SHARDWRIGHT_HOST_DEVICE inline std::uint32_t float_bits(std::uint32_t bits) {
  if constexpr (format.exponent_bits == 8) {
    return bits << (23 - format.mantissa_bits);
  } else {
    constexpr int width = 1 + format.exponent_bits + format.mantissa_bits;
    constexpr std::uint32_t highest = ((1U << format.exponent_bits) - 1) << format.mantissa_bits;
    const std::uint32_t magnitude = bits & ((1U << (width - 1)) - 1);
    const std::uint32_t sign = (bits >> (width - 1)) << 31;
    if (format.has_infinity && magnitude >= highest) {
      return sign | 0x7F800000 | (magnitude - highest) << (23 - format.mantissa_bits);
    }
    if (format.has_nan && !format.has_infinity &&
        magnitude == (highest | ((1U << format.mantissa_bits) - 1))) {
      return sign | 0x7FC00000;
    }
    return bits_of_float(finite_value<format>(bits));
  }
}

/// The F32 bits of a number, given by these as well, times a scale, rounded once. Where the number is one of
/// e4m3 or e5m2 and the scale a power of two from 2^-127 on nothing is rounded, but that a product beyond F32
/// becomes infinite, as it would in BF16 and F16. NaN has the sign of the element.
SHARDWRIGHT_HOST_DEVICE inline std::uint32_t scaled_float_bits(std::uint32_t bits, std::uint32_t scale) {
  const std::uint32_t product = bits_of_float(float_of_bits(bits) * float_of_bits(scale));
  const bool is_nan = (product & 0x7FFFFFFFU) > 0x7F800000U;
  return is_nan ? (bits & 0x80000000U) | 0x7FC00000U : product;
}

/// nearest<format>() of the F32 number with these bits, for BF16, F16 and F32.
template <FloatFormat format>
SHARDWRIGHT_HOST_DEVICE inline std::uint32_t nearest_of_float(std::uint32_t bits) {
  static_assert(format.exponent_bits == 8 || format.mantissa_bits == 10);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) bits = (bits & 0x80000000U) | 0x7FC00000U;
  if constexpr (format.mantissa_bits == 23) {
    return bits;
  } else if constexpr (format.exponent_bits == 8) {
    // Half a unit less one, and one more if what is kept is odd. A carry moves on into the exponent.
    return (bits + 0x7FFFU + ((bits >> 16) & 1)) >> 16;
  } else {
    const std::uint32_t sign = (bits >> 31) << 15;
    if (magnitude > 0x7F800000U) return sign | 0x7E00;
    if (magnitude >= 0x47800000U) return sign | 0x7C00;  // from 2^16 on
    if (magnitude < 0x38800000U) {                       // subnormal: below 2^-14
      // The last bit of a number from 0.5 to 1 weighs 2^-24, as that of a subnormal F16 number does.
      return sign | (bits_of_float(float_of_bits(magnitude) + 0.5F) - 0x3F000000U);
    }
    return sign | ((magnitude - ((127U - 15U) << 23) + 0xFFFU + ((magnitude >> 13) & 1)) >> 13);
  }
}

/// smallest_scale() of number_formats.h of the F32 number with these bits, which is no NaN and not below
/// zero.
SHARDWRIGHT_HOST_DEVICE constexpr std::uint8_t smallest_scale_of_float(std::uint32_t bits) {
  // A mantissa beyond that of 1.75 carries into the exponent; 448 is 1.75 * 2^8.
  const std::uint32_t carried = (bits + 0x1FFFFF) >> 23;
  return static_cast<std::uint8_t>(carried > 8 ? carried - 8 : 0);
}

/// The e4m3 code of an F32 number divided by the scale that an e8m0 byte (not 255) stands for: encoded() of
/// number_formats.h.
SHARDWRIGHT_HOST_DEVICE inline std::uint8_t encoded_float(std::uint32_t bits, std::uint8_t scale) {
  // The quotient may lose bits only where it is subnormal, and then it becomes zero; or overflow, and then it
  // would not have fitted.
  const float quotient =
      float_of_bits(bits) * float_of_bits(float_bits_of_e8m0(static_cast<std::uint8_t>(254 - scale)));
  const std::uint32_t magnitude = bits_of_float(quotient) & 0x7FFFFFFFU;
  const std::uint32_t sign = (bits >> 31) << 7;
  std::uint32_t code = 0;
  if (magnitude > 0x7F800000U) {
    code = 0x7F;
  } else if (magnitude >= 0x43E00000U) {  // from 448 on
    code = 0x7E;
  } else if (magnitude < 0x3C800000U) {  // below 2^-6: subnormal
    // The last bit of a number from 2^14 to 2^15 weighs 2^-9, as that of a subnormal e4m3 number does.
    code = bits_of_float(float_of_bits(magnitude) + 16384.0F) - 0x46800000U;
  } else {
    code = (magnitude - ((127U - 7U) << 23) + 0x7FFFFU + ((magnitude >> 20) & 1)) >> 20;
  }
  return static_cast<std::uint8_t>(sign | code);
}

}  // namespace shardwright
