#pragma once

// What the kernels have to compute, written again, in another way and with no care for speed: long double
// holds every value and every product here exactly (x87 and quad alike), and floor() decides how it is
// rounded.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "kernels/decode.h"

namespace shardwright::slow {

static_assert(std::numeric_limits<long double>::digits >= 64);

struct Fields {
  int exponent_bits;
  int mantissa_bits;
};

inline Fields fields_of(DType dtype) {
  switch (dtype) {
    case DType::F8_E4M3:
      return {4, 3};
    case DType::F8_E5M2:
      return {5, 2};
    case DType::F16:
      return {5, 10};
    case DType::BF16:
      return {8, 7};
    case DType::F32:
      return {8, 23};
    case DType::F64:
      return {11, 52};
    default:
      throw std::invalid_argument("not a floating-point format");
  }
}

inline long double value_of(DType dtype, std::uint64_t bits) {
  if (dtype == DType::F4) {
    constexpr long double magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    return (bits & 8) != 0 ? -magnitudes[bits & 7] : magnitudes[bits];
  }
  if (dtype == DType::I4) return static_cast<long double>(bits) - 8;
  const auto [exponent_bits, mantissa_bits] = fields_of(dtype);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const auto mantissa = static_cast<long double>(bits & ((std::uint64_t{1} << mantissa_bits) - 1));
  const int exponent = static_cast<int>(bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const long double sign = (bits >> (mantissa_bits + exponent_bits) & 1) != 0 ? -1 : 1;
  const long double nan = std::copysign(std::numeric_limits<long double>::quiet_NaN(), sign);
  if (dtype == DType::F8_E4M3) {
    if ((bits & 0x7F) == 0x7F) return nan;
  } else if (exponent == (1 << exponent_bits) - 1) {
    return mantissa == 0 ? sign * std::numeric_limits<long double>::infinity() : nan;
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp(1 + std::ldexp(mantissa, -mantissa_bits), exponent - bias);
}

inline std::uint64_t rounded(DType dtype, long double value) {
  const auto [exponent_bits, mantissa_bits] = fields_of(dtype);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const std::uint64_t hidden = std::uint64_t{1} << mantissa_bits;
  const std::uint64_t sign = std::uint64_t{std::signbit(value)} << (exponent_bits + mantissa_bits);
  const std::uint64_t infinity = static_cast<std::uint64_t>(2 * bias + 1) << mantissa_bits;
  if (std::isnan(value)) return sign | infinity | hidden / 2;
  if (std::isinf(value)) return sign | infinity;
  if (value == 0) return sign;

  const long double magnitude = std::fabs(value);
  const int unit = std::max(std::ilogb(magnitude), 1 - bias) - mantissa_bits;
  const long double units = std::ldexp(magnitude, -unit);
  long double count = std::floor(units);
  const long double rest = units - count;
  if (rest > 0.5L || (rest == 0.5L && std::fmod(count, 2.0L) == 1)) count += 1;
  if (count == 0) return sign;
  const long double result = std::ldexp(count, unit);
  if (result >= std::ldexp(1.0L, bias + 1)) return sign | infinity;
  if (result < std::ldexp(1.0L, 1 - bias)) return sign | static_cast<std::uint64_t>(count);
  const int exponent = std::ilogb(result);
  const auto mantissa = static_cast<std::uint64_t>(std::ldexp(result, mantissa_bits - exponent)) - hidden;
  return sign | static_cast<std::uint64_t>(exponent + bias) << mantissa_bits | mantissa;
}

inline bool is_e8m0(DType dtype) { return dtype == DType::U8 || dtype == DType::F8_E8M0; }

/// What a tile's scales are, apart from where they lie.
struct Scales {
  DType dtype;
  Product product = Product::exact_once;
  float global = 1;
  bool code_eight_is_plus_zero = false;
};

inline Scales scales_of(const BlockScales& scales) {
  return {scales.dtype, scales.product, scales.global, scales.code_eight_is_plus_zero};
}

inline long double in_f32(long double value) { return value_of(DType::F32, rounded(DType::F32, value)); }

/// An element times a scale, given by their bits. The quotient of the 4 bits of an e4m3 number and the 24 of
/// an F32 number is no nearer than 2^-50 to a number halfway between two of F32 that it does not equal:
/// rounding it to 64 bits first changes nothing.
inline std::uint64_t decoded(DType to, DType element_dtype, std::uint64_t element, const Scales& scales,
                             std::uint64_t scale) {
  const bool is_modelopt = scales.product == Product::modelopt_nvfp4;
  long double value = value_of(element_dtype, element);
  if (element_dtype == DType::F4 && (is_modelopt || scales.code_eight_is_plus_zero) && value == 0) value = 0;
  long double factor = !is_e8m0(scales.dtype) ? value_of(scales.dtype, scale)
                       : scale == 255         ? std::numeric_limits<long double>::quiet_NaN()
                                              : std::ldexp(1.0L, static_cast<int>(scale) - 127);
  const auto global = static_cast<long double>(scales.global);
  if (is_modelopt) factor = in_f32(factor * global);
  if (scales.product == Product::compressed_tensors_nvfp4) factor = in_f32(factor / global);
  const long double product = value * factor;
  if (std::isnan(product)) {
    return rounded(to, std::copysign(std::numeric_limits<long double>::quiet_NaN(), value));
  }
  return rounded(to, scales.product == Product::exact_once ? product : in_f32(product));
}

inline std::uint64_t converted(DType from, DType to, std::uint64_t bits) {
  return from == to ? bits : rounded(to, value_of(from, bits));
}

inline std::uint64_t load(const void* memory, std::int64_t index, DType dtype) {
  if (bits_of(dtype) == 4) {
    const auto byte = static_cast<const std::uint8_t*>(memory)[index / 2];
    return index % 2 == 0 ? byte % 16U : byte / 16U;
  }
  const auto size = static_cast<std::size_t>(bytes_of(dtype));
  std::uint64_t bits = 0;
  std::memcpy(&bits, static_cast<const char*>(memory) + index * bytes_of(dtype), size);
  return bits;
}

inline void store(void* memory, std::int64_t index, DType dtype, std::uint64_t bits) {
  if (bits_of(dtype) == 4) {
    std::uint8_t& byte = static_cast<std::uint8_t*>(memory)[index / 2];
    byte = static_cast<std::uint8_t>(index % 2 == 0 ? byte / 16 * 16 + bits : byte % 16 + 16 * bits);
    return;
  }
  std::memcpy(static_cast<char*>(memory) + index * bytes_of(dtype), &bits,
              static_cast<std::size_t>(bytes_of(dtype)));
}

inline std::uint64_t element_of(const SourceTile& source, std::int64_t row, std::int64_t column) {
  const std::int64_t index = row * source.row_stride + column;
  return load(source.data, index + (source.begins_in_high_nibble ? 1 : 0), source.dtype);
}

inline void place(const SourceTile& source, const DestinationTile& destination) {
  for (std::int64_t row = 0; row < source.rows; ++row) {
    for (std::int64_t column = 0; column < source.columns; ++column) {
      const std::uint64_t bits = load(source.data, row * source.row_stride + column, source.dtype);
      store(destination.data, row * destination.row_stride + column * destination.column_stride,
            destination.dtype, converted(source.dtype, destination.dtype, bits));
    }
  }
}

inline void decode(const SourceTile& source, const BlockScales& scales, const DestinationTile& destination) {
  for (std::int64_t row = 0; row < source.rows; ++row) {
    for (std::int64_t column = 0; column < source.columns; ++column) {
      const std::uint64_t element = element_of(source, row, column);
      const std::int64_t block_row = (scales.first_row + row) / scales.block_rows;
      const std::int64_t block_column = (scales.first_column + column) / scales.block_columns;
      store(destination.data, row * destination.row_stride + column * destination.column_stride,
            destination.dtype,
            decoded(destination.dtype, source.dtype, element, scales_of(scales),
                    load(scales.data, block_row * scales.row_stride + block_column, scales.dtype)));
    }
  }
}

}  // namespace shardwright::slow
