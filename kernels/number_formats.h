#pragma once

// What the bits of a number mean, and how a number is rounded to bits: the definition that every faster
// kernel, on the CPU or on a GPU, must equal bit for bit. Integers only, so that no rounding mode, FTZ or DAZ
// setting, compiler flag or device can change a result.

#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define SHARDWRIGHT_HOST_DEVICE __host__ __device__
#else
#define SHARDWRIGHT_HOST_DEVICE
#endif

namespace shardwright {

/// A binary floating-point format of one sign bit, then the exponent with the usual bias of
/// 2^(exponent_bits - 1) - 1, then the mantissa.
struct FloatFormat {
  int exponent_bits = 0;
  int mantissa_bits = 0;
  bool has_infinity =
      true;             ///< false: all ones is the only NaN, and the highest exponent holds numbers ("fn")
  bool has_nan = true;  ///< false, where there are no infinities either: all ones is a number as well
};

inline constexpr FloatFormat e2m1{2, 1, false, false};
inline constexpr FloatFormat e4m3fn{4, 3, false};
inline constexpr FloatFormat e5m2{5, 2};
inline constexpr FloatFormat float16{5, 10};
inline constexpr FloatFormat bfloat16{8, 7};
inline constexpr FloatFormat float32{8, 23};
inline constexpr FloatFormat float64{11, 52};

/// The exact value of any number of any of these formats, of its product with a power of two, and of the
/// product of two of them whose significands have no more than 63 bits together: significand * 2^exponent,
/// with the sign kept beside it (zeros and NaNs have one, too).
struct ExactNumber {
  enum class Kind : std::uint8_t { finite, infinite, not_a_number };
  std::uint64_t significand = 0;
  std::int32_t exponent = 0;
  bool is_negative = false;
  Kind kind = Kind::finite;
};

/// Position of the highest bit that is set. Needs bits != 0.
SHARDWRIGHT_HOST_DEVICE constexpr int highest_bit(std::uint64_t bits) {
  int position = 0;
  for (int step = 32; step > 0; step /= 2) {
    if ((bits >> step) != 0) {
      bits >>= step;
      position += step;
    }
  }
  return position;
}

template <FloatFormat format>
SHARDWRIGHT_HOST_DEVICE constexpr ExactNumber exact_value(std::uint64_t bits) {
  constexpr int mantissa_bits = format.mantissa_bits;
  constexpr std::uint64_t implicit_bit = std::uint64_t{1} << mantissa_bits;
  constexpr int exponent_mask = (1 << format.exponent_bits) - 1;
  constexpr int bias = exponent_mask / 2;

  const std::uint64_t mantissa = bits & (implicit_bit - 1);
  const int exponent = static_cast<int>(bits >> mantissa_bits) & exponent_mask;
  ExactNumber number;
  number.is_negative = ((bits >> (mantissa_bits + format.exponent_bits)) & 1) != 0;
  if (format.has_nan && exponent == exponent_mask && (format.has_infinity || mantissa == implicit_bit - 1)) {
    number.kind =
        format.has_infinity && mantissa == 0 ? ExactNumber::Kind::infinite : ExactNumber::Kind::not_a_number;
  } else if (exponent == 0) {
    number.significand = mantissa;
    number.exponent = 1 - bias - mantissa_bits;
  } else {
    number.significand = mantissa | implicit_bit;
    number.exponent = exponent - bias - mantissa_bits;
  }
  return number;
}

/// `number` times the scale that an e8m0 byte stands for: 2^(scale - 127), or NaN for 255. The sign stays.
SHARDWRIGHT_HOST_DEVICE constexpr ExactNumber scaled(ExactNumber number, std::uint8_t scale) {
  number.exponent += static_cast<std::int32_t>(scale) - 127;
  if (scale == 255) number.kind = ExactNumber::Kind::not_a_number;
  return number;
}

/// `number` times a scale that has a sign and a significand of its own; see above for how many bits these may
/// have. A NaN on either side, or infinity times zero, gives NaN with the sign of `number`.
SHARDWRIGHT_HOST_DEVICE constexpr ExactNumber scaled(ExactNumber number, const ExactNumber& scale) {
  using Kind = ExactNumber::Kind;
  const bool has_infinity = number.kind == Kind::infinite || scale.kind == Kind::infinite;
  const bool has_zero = (number.kind == Kind::finite && number.significand == 0) ||
                        (scale.kind == Kind::finite && scale.significand == 0);
  if (number.kind == Kind::not_a_number || scale.kind == Kind::not_a_number || (has_infinity && has_zero)) {
    number.kind = Kind::not_a_number;
    return number;
  }
  number.is_negative = number.is_negative != scale.is_negative;
  number.kind = has_infinity ? Kind::infinite : Kind::finite;
  number.significand *= scale.significand;
  number.exponent += scale.exponent;
  return number;
}

/// `number` over a divisor of up to 32 significant bits, with 31 significant bits or more, of which the last
/// is set if the quotient has any beyond: near enough that nearest() of a format of up to 29 bits rounds it
/// as it would the exact quotient. A NaN on either side, zero over zero and infinity over infinity give NaN
/// with the sign of `number`.
SHARDWRIGHT_HOST_DEVICE constexpr ExactNumber quotient(ExactNumber number, const ExactNumber& divisor) {
  using Kind = ExactNumber::Kind;
  const auto is_zero = [](const ExactNumber& n) { return n.kind == Kind::finite && n.significand == 0; };
  if (number.kind == Kind::not_a_number || divisor.kind == Kind::not_a_number ||
      (is_zero(number) && is_zero(divisor)) ||
      (number.kind == Kind::infinite && divisor.kind == Kind::infinite)) {
    number.kind = Kind::not_a_number;
    return number;
  }
  number.is_negative = number.is_negative != divisor.is_negative;
  if (number.kind == Kind::infinite || is_zero(number)) return number;
  if (divisor.kind == Kind::infinite) {
    number.significand = 0;
  } else if (divisor.significand == 0) {
    number.kind = Kind::infinite;
  } else {
    const int shift = 62 - highest_bit(number.significand);
    const std::uint64_t wide = number.significand << shift;
    number.significand = wide / divisor.significand | (wide % divisor.significand != 0 ? 1 : 0);
    number.exponent -= shift + divisor.exponent;
  }
  return number;
}

/// The nearest number of the format, ties to even: too large becomes infinity (in a format without infinities
/// the largest number, as does an infinity), too small a subnormal or zero. Every NaN becomes the quiet NaN
/// with an otherwise empty payload (0x7FC0 in BF16; all ones where that is the only one) and the sign that it
/// had. REQUIRES: no NaN where the format has none; a significand of at most 63 bits.
template <FloatFormat format>
SHARDWRIGHT_HOST_DEVICE constexpr std::uint64_t nearest(const ExactNumber& number) {
  constexpr int mantissa_bits = format.mantissa_bits;
  constexpr int bias = ((1 << format.exponent_bits) - 1) / 2;
  constexpr std::uint64_t highest_exponent = ((std::uint64_t{1} << format.exponent_bits) - 1)
                                             << mantissa_bits;
  constexpr std::uint64_t quiet = std::uint64_t{1} << (mantissa_bits - 1);
  constexpr std::uint64_t not_a_number = highest_exponent | (format.has_infinity ? quiet : 2 * quiet - 1);
  constexpr std::uint64_t overflow = format.has_infinity ? highest_exponent
                                     : format.has_nan    ? not_a_number - 1
                                                         : not_a_number;

  const std::uint64_t sign = std::uint64_t{number.is_negative} << (mantissa_bits + format.exponent_bits);
  if (number.kind == ExactNumber::Kind::not_a_number) return sign | not_a_number;
  if (number.kind == ExactNumber::Kind::infinite) return sign | overflow;
  if (number.significand == 0) return sign;

  // The weight of the last bit that is kept; below the normal range it stops falling.
  const int leading = number.exponent + highest_bit(number.significand);
  const int last = (leading > 1 - bias ? leading : 1 - bias) - mantissa_bits;
  const int dropped_bits = last - number.exponent;
  std::uint64_t kept = 0;
  if (dropped_bits <= 0) {
    kept = number.significand << -dropped_bits;
  } else if (dropped_bits < 64) {  // beyond that less than half is left
    const std::uint64_t half = std::uint64_t{1} << (dropped_bits - 1);
    const std::uint64_t rest = number.significand & (2 * half - 1);
    kept = number.significand >> dropped_bits;
    if (rest > half || (rest == half && (kept & 1) != 0)) ++kept;
  }
  // `kept` holds the implicit bit of a normal number, which counts as 1 in the exponent's field. A carry out
  // of the mantissa moves on into the exponent, which is where it belongs.
  const auto exponent_field = static_cast<std::int64_t>(last) + mantissa_bits + bias - 1;
  if (exponent_field >= (std::int64_t{1} << format.exponent_bits)) return sign | overflow;
  const std::uint64_t magnitude = kept + (static_cast<std::uint64_t>(exponent_field) << mantissa_bits);
  return sign | (magnitude < overflow ? magnitude : overflow);
}

/// The e8m0 byte of the smallest power of two at which |number| <= 448 * scale, 448 being the largest e4m3
/// number; 0, that of 2^-127, where all would do: for a zero, and for a NaN, which no scale makes fit. An
/// infinity counts as 2^128, and so gets 2^120: the scale at which 448 is decoded to an infinity in BF16 and
/// F32. Numbers of BF16, F16 and F32 never need a scale beyond that one.
SHARDWRIGHT_HOST_DEVICE constexpr std::uint8_t smallest_scale(const ExactNumber& number) {
  if (number.kind == ExactNumber::Kind::infinite) return 127 + 120;
  if (number.kind == ExactNumber::Kind::not_a_number || number.significand == 0) return 0;
  // 448 is 1.75 * 2^8. The significand's part behind 1.11 decides whether the next power is needed.
  const int top = highest_bit(number.significand);
  const bool is_above = 4 * number.significand > std::uint64_t{7} << top;
  const int scale = number.exponent + top - 8 + (is_above ? 1 : 0) + 127;
  return static_cast<std::uint8_t>(scale < 0 ? 0 : scale > 254 ? 254 : scale);
}

/// The e4m3 code of number / scale, rounded once, to nearest even. `scale` is an e8m0 byte. What does not
/// fit becomes 448 with the number's sign.
SHARDWRIGHT_HOST_DEVICE constexpr std::uint8_t encoded(const ExactNumber& number, std::uint8_t scale) {
  return static_cast<std::uint8_t>(nearest<e4m3fn>(scaled(number, static_cast<std::uint8_t>(254 - scale))));
}

}  // namespace shardwright
