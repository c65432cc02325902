#pragma once

// The named rules of encoding, written again in long double: every rounding is said, codes are found by
// looking for the nearest of all.

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

#include "kernels/encode.h"
#include "slow_definition.h"

namespace shardwright::slow {

inline long double in(DType dtype, long double value) { return value_of(dtype, rounded(dtype, value)); }

/// Among equally near codes: the one of an even number, of the smaller or of the larger magnitude.
enum class Tie { even, smaller, larger };

/// The code of `element`, of those with the sign bit unset (I4: of all), whose value is nearest.
inline std::uint8_t nearest_code(DType element, long double value, Tie tie) {
  const bool is_int = element == DType::I4;
  const int first = 0;
  const int end = is_int ? 16 : element == DType::F4 ? 8 : 0x7F;
  int best = first;
  for (int code = first; code < end; ++code) {
    const long double distance = std::fabs(value - value_of(element, static_cast<std::uint64_t>(code)));
    const long double least = std::fabs(value - value_of(element, static_cast<std::uint64_t>(best)));
    const bool is_preferred = tie == Tie::larger || (tie == Tie::even && code % 2 == 0);
    if (distance < least || (distance == least && is_preferred)) best = code;
  }
  return static_cast<std::uint8_t>(best);
}

/// The least power of two, from 2^-127 on, that is not below a number.
inline int power_not_below(long double number) {
  int exponent = -127;
  while (std::ldexp(1.0L, exponent) < number) ++exponent;
  return exponent;
}

struct EncodedBlock {
  std::uint64_t scale = 0;
  std::vector<std::uint8_t> codes;
};

inline long double global_of(EncodingRule rule, DType dtype, long double largest) {
  if (rule == EncodingRule::nvfp4_modelopt) return in(DType::F32, largest / 2688);
  if (rule != EncodingRule::nvfp4_compressed_tensors) return 1;
  const long double normal = dtype == DType::F16 ? 0x1p-14L : 0x1p-126L;
  const long double reciprocal = in(dtype, in(DType::F32, 1 / std::max(largest, normal)));
  const long double global = in(dtype, in(DType::F32, reciprocal * 2688));
  return std::isinf(global) ? 1 : global;
}

inline EncodedBlock encoded_block(EncodingRule rule, DType dtype, const std::vector<long double>& values,
                                  long double largest, long double global) {
  const auto f32 = [](long double value) { return in(DType::F32, value); };
  const auto e4m3 = [](long double value) { return nearest_code(DType::F8_E4M3, value, Tie::even); };
  EncodedBlock block;
  const auto each = [&](auto code_of) {
    for (const long double value : values) block.codes.push_back(static_cast<std::uint8_t>(code_of(value)));
  };
  const auto fp4 = [](long double quotient, bool has_sign, Tie tie) {
    return (has_sign ? 8 : 0) + nearest_code(DType::F4, std::fabs(quotient), tie);
  };
  const auto fp8 = [&](long double quotient) {
    return (std::signbit(quotient) ? 0x80 : 0) + e4m3(std::fabs(quotient));
  };
  switch (rule) {
    case EncodingRule::mxfp8: {
      const int power = power_not_below(largest / 448);
      block.scale = static_cast<std::uint64_t>(power + 127);
      each([&](long double value) { return fp8(std::ldexp(value, -power)); });
      break;
    }
    case EncodingRule::block_fp8: {
      const long double factor = largest > 0 ? f32(f32(1 / largest) * 448) : 1;
      block.scale = rounded(DType::F32, 1 / factor);
      each([&](long double value) { return fp8(f32(value * factor)); });
      break;
    }
    case EncodingRule::mxfp4_modelopt: {
      const int power = power_not_below(f32(largest / 6));
      block.scale = static_cast<std::uint64_t>(power + 127);
      each([&](long double value) {
        const long double quotient = f32(std::ldexp(value, -power));
        return fp4(quotient, !(quotient > 0), Tie::smaller);
      });
      break;
    }
    case EncodingRule::mxfp4_ocp: {
      int power = -127;
      if (largest > 0) {
        const int floor = std::ilogb(largest);
        power = std::max(-127, floor - (largest >= std::ldexp(1.75L, floor) ? 1 : 2));
      }
      block.scale = static_cast<std::uint64_t>(power + 127);
      each([&](long double value) {
        return fp4(f32(std::ldexp(value, -power)), f32(std::ldexp(value, -power)) < 0, Tie::even);
      });
      break;
    }
    case EncodingRule::mxfp4_gpt_oss: {
      const int power = largest == 0 ? -127 : std::max(-126, power_not_below(f32(largest / 6)));
      block.scale = static_cast<std::uint64_t>(power + 127);
      each([&](long double value) {
        return fp4(f32(std::ldexp(value, -power)), std::signbit(value), Tie::larger);
      });
      break;
    }
    case EncodingRule::nvfp4_modelopt: {
      const long double wanted = largest == 0 ? 1 : f32(largest / f32(6 * global));
      block.scale = e4m3(std::max(0x1p-9L, wanted));
      const long double divisor = f32(value_of(DType::F8_E4M3, block.scale) * global);
      each([&](long double value) {
        return divisor == 0 ? 0 : fp4(f32(value / divisor), f32(value / divisor) < 0, Tie::even);
      });
      break;
    }
    case EncodingRule::nvfp4_compressed_tensors: {
      block.scale = e4m3(f32(global * in(dtype, f32(largest / 6))));
      if (block.scale == 0) block.scale = e4m3(0.125L);
      const long double divisor = f32(value_of(DType::F8_E4M3, block.scale) / global);
      each([&](long double value) { return fp4(f32(value / divisor), f32(value / divisor) < 0, Tie::even); });
      break;
    }
    case EncodingRule::int4_compressed_tensors: {
      long double scale = in(dtype, f32(largest / 7.5L));
      if (scale == 0) scale = dtype == DType::BF16 ? 0x1p-7L : dtype == DType::F16 ? 0x1p-10L : 0x1p-23L;
      block.scale = rounded(DType::BF16, scale);
      const long double divisor = value_of(DType::BF16, block.scale);
      each([&](long double value) {
        const long double quotient = f32(value / divisor);
        return nearest_code(DType::I4, dtype == DType::BF16 ? in(DType::BF16, quotient) : quotient,
                            Tie::even);
      });
      break;
    }
  }
  return block;
}

}  // namespace shardwright::slow
