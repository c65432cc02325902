#pragma once

// MXFP8 by the words of kernels/encode.h: every scale and every element is tried.

#include <algorithm>
#include <cmath>
#include <vector>

#include "tests/kernels/slow_definition.h"

namespace shardwright::slow {

/// The scale of a block of these values.
inline std::uint8_t scale_of(const std::vector<long double>& values) {
  long double largest = 0;
  for (long double value : values) {
    if (std::isinf(value)) value = 0x1p128L;
    if (!std::isnan(value)) largest = std::max(largest, std::abs(value));
  }
  for (int scale = 0; scale < 254; ++scale) {
    if (largest <= 448 * std::ldexp(1.0L, scale - 127)) return static_cast<std::uint8_t>(scale);
  }
  return 254;
}

/// The nearest of all e4m3 numbers, the even code of two that are equally near.
inline std::uint8_t encoded(long double value, std::uint8_t scale) {
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return sign | 0x7F;
  if (std::isinf(value)) return sign | 0x7E;
  static const std::vector<long double> numbers = [] {
    std::vector<long double> all;
    for (std::uint8_t code = 0; code < 0x7F; ++code) all.push_back(value_of(DType::F8_E4M3, code));
    return all;
  }();
  const long double wanted = std::ldexp(std::abs(value), 127 - scale);
  std::uint8_t best = 0;
  for (std::uint8_t code = 1; code < 0x7F; ++code) {
    const long double distance = std::abs(numbers[code] - wanted);
    const long double least = std::abs(numbers[best] - wanted);
    if (distance < least || (distance == least && code % 2 == 0)) best = code;
  }
  return sign | best;
}

}  // namespace shardwright::slow
