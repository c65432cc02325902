#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/decode.h"
#include "kernels/encode.h"
#include "kernels/encode_runs.h"
#include "kernels/float_arithmetic.h"
#include "kernels/floating_point_mode.h"

namespace shardwright {
namespace {

// In the order of the enumeration, so that a rule is its own index.
constexpr std::array<EncodedFormat, 8> formats{{
    {EncodingRule::mxfp8, "mxfp8", DType::F8_E4M3, DType::U8, 1, 32, Product::exact_once, false},
    {EncodingRule::block_fp8, "block_fp8", DType::F8_E4M3, DType::F32, 128, 128, Product::to_f32_first,
     false},
    {EncodingRule::mxfp4_modelopt, "mxfp4-modelopt", DType::F4, DType::U8, 1, 32, Product::exact_once, false},
    {EncodingRule::mxfp4_ocp, "mxfp4-ocp", DType::F4, DType::U8, 1, 32, Product::exact_once, false},
    {EncodingRule::mxfp4_gpt_oss, "mxfp4-gpt-oss", DType::F4, DType::U8, 1, 32, Product::exact_once, false},
    {EncodingRule::nvfp4_modelopt, "nvfp4-modelopt", DType::F4, DType::F8_E4M3, 1, 16,
     Product::modelopt_nvfp4, true},
    {EncodingRule::nvfp4_compressed_tensors, "nvfp4-compressed-tensors", DType::F4, DType::F8_E4M3, 1, 16,
     Product::compressed_tensors_nvfp4, true},
    {EncodingRule::int4_compressed_tensors, "int4-compressed-tensors", DType::I4, DType::BF16, 1, 32,
     Product::exact_once, false},
}};

constexpr bool formats_follow_the_enumeration() {
  for (std::size_t index = 0; index < formats.size(); ++index) {
    if (static_cast<std::size_t>(formats[index].rule) != index) return false;
  }
  return static_cast<std::size_t>(EncodingRule::int4_compressed_tensors) + 1 == formats.size();
}
static_assert(formats_follow_the_enumeration());

/// An F32 number rounded to a dtype that values may have, as torch rounds what it computes with them.
float in_dtype(DType dtype, float value) {
  const std::uint32_t bits = bits_of_float(value);
  if (dtype == DType::BF16) return float_of_bits(float_bits<bfloat16>(nearest_of_float<bfloat16>(bits)));
  if (dtype == DType::F16) return float_of_bits(float_bits<float16>(nearest_of_float<float16>(bits)));
  return value;
}

float smallest_normal(DType dtype) { return dtype == DType::F16 ? 0x1p-14F : 0x1p-126F; }

float epsilon(DType dtype) {
  return dtype == DType::BF16 ? 0x1p-7F : dtype == DType::F16 ? 0x1p-10F : 0x1p-23F;
}

float e8m0_value(std::uint32_t byte) {
  return float_of_bits(float_bits_of_e8m0(static_cast<std::uint8_t>(byte)));
}

/// The e8m0 byte of the least power of two, from 2^-126 on, that is not below a number given by its F32 bits;
/// 0 for zero. The byte is the exponent's field, into which any mantissa carries.
std::uint32_t next_power(std::uint32_t bits) { return (bits + 0x007FFFFF) >> 23; }

constexpr std::uint8_t e4m3_eighth = 0x20;  // 2^-3

/// A scale as it is stored and the factor for values.
template <class Stored>
struct Scale {
  Stored stored;
  float factor;
};

Scale<std::uint8_t> e8m0_scale(std::uint32_t byte, float factor) {
  return {static_cast<std::uint8_t>(byte), factor};
}

/// Calls use with a function that rounds F32 numbers to the dtype: one without branches, so that the compiler
/// makes vectors of what calls it, where that is BF16 or F32.
template <class Use>
void rounding_to(DType dtype, Use use) {
  switch (dtype) {
    case DType::BF16:
      return use([](float value) { return in_dtype(DType::BF16, value); });
    case DType::F16:
      return use([](float value) { return in_dtype(DType::F16, value); });
    default:
      return use([](float value) { return value; });
  }
}

/// Calls scale_of(magnitude) for each, and writes what it returns.
template <class ScaleOf>
void write_scales(const float* magnitudes, std::int64_t count, void* scales, float* factors,
                  ScaleOf scale_of) {
  auto* to = static_cast<std::byte*>(scales);
  for (std::int64_t i = 0; i < count; ++i) {
    const auto [stored, factor] = scale_of(magnitudes[i]);
    std::memcpy(to + i * std::int64_t{sizeof stored}, &stored, sizeof stored);
    factors[i] = factor;
  }
}

/// The same for scales of e4m3: nearest to wanted(magnitude), which is from 0 to 448; `least` for what would
/// be zero. The factor is that of the scale's value.
template <class Wanted, class FactorOf>
void write_e4m3_scales(const float* magnitudes, std::int64_t count, void* scales, float* factors,
                       std::uint8_t least, Wanted wanted, FactorOf factor_of) {
  constexpr std::int64_t at_once = 256;
  const InstructionSet& set = instruction_set_in_use();
  const Encoder encoder = encoder_of(set, {DType::F8_E4M3, Change::multiply}, DType::F32);
  std::array<float, at_once> numbers;
  std::array<float, at_once> ones;
  ones.fill(1.0F);
  auto* codes = static_cast<std::uint8_t*>(scales);
  for (std::int64_t begin = 0; begin < count; begin += at_once) {
    const std::int64_t some = std::min(at_once, count - begin);
    for (std::int64_t i = 0; i < some; ++i)
      numbers[static_cast<std::size_t>(i)] = wanted(magnitudes[begin + i]);
    encode_values(encoder, reinterpret_cast<const std::byte*>(numbers.data()), ones.data(), some, codes,
                  begin);
    for (std::int64_t i = begin; i < begin + some; ++i) {
      if (codes[i] == 0) codes[i] = least;
    }
    place({codes + begin, DType::F8_E4M3, 1, some, some}, {numbers.data(), DType::F32, some, 1});
    for (std::int64_t i = 0; i < some; ++i)
      factors[begin + i] = factor_of(numbers[static_cast<std::size_t>(i)]);
  }
}

void expect_encodable(DType values, EncodingRule rule) {
  if (can_encode(values)) return;
  throw std::invalid_argument("cannot encode " + std::string(name_of(values)) + " values as " +
                              std::string(format_of(rule).name) + "; expected BF16, F16 or F32");
}

void expect_finite(float magnitude, EncodingRule rule) {
  if (std::isfinite(magnitude)) return;
  throw std::invalid_argument("cannot encode values whose largest magnitude is " + std::to_string(magnitude) +
                              " as " + std::string(format_of(rule).name) + "; expected finite values");
}

}  // namespace

const EncodedFormat& format_of(EncodingRule rule) { return formats[static_cast<std::size_t>(rule)]; }

std::optional<EncodingRule> encoding_rule_named(std::string_view name) {
  for (const EncodedFormat& format : formats) {
    if (format.name == name) return format.rule;
  }
  return std::nullopt;
}

float global_scale(EncodingRule rule, DType values, float largest) {
  expect_encodable(values, rule);
  expect_finite(largest, rule);
  const DefaultFloatingPointMode mode;
  if (rule == EncodingRule::nvfp4_modelopt) return largest / 2688.0F;
  if (rule != EncodingRule::nvfp4_compressed_tensors) return 1;
  const float reciprocal = in_dtype(values, 1.0F / std::max(largest, smallest_normal(values)));
  const float global = in_dtype(values, reciprocal * 2688.0F);
  return std::isfinite(global) ? global : 1.0F;
}

void scales_of_magnitudes(EncodingRule rule, DType values, const float* magnitudes, std::int64_t count,
                          float global, void* scales, float* factors) {
  expect_encodable(values, rule);
  if (rule != EncodingRule::mxfp8) {
    for (std::int64_t i = 0; i < count; ++i) expect_finite(magnitudes[i], rule);
  }
  const DefaultFloatingPointMode mode;
  const auto write = [&](auto scale_of) { write_scales(magnitudes, count, scales, factors, scale_of); };
  switch (rule) {
    case EncodingRule::mxfp8:
      return write([](float largest) {
        const std::uint8_t byte = smallest_scale_of_float(bits_of_float(largest));
        return e8m0_scale(byte, e8m0_value(254U - byte));
      });
    case EncodingRule::block_fp8:
      return write([](float largest) {
        const float factor = largest > 0 ? 1.0F / largest * 448.0F : 1.0F;
        return Scale<float>{1.0F / factor, factor};
      });
    case EncodingRule::mxfp4_modelopt:
      return write([](float largest) {
        const std::uint32_t bits = bits_of_float(largest / 6.0F);
        const std::uint32_t byte = bits <= 0x00400000 ? 0 : next_power(bits);  // 2^-127 is subnormal
        return e8m0_scale(byte, e8m0_value(byte));
      });
    case EncodingRule::mxfp4_ocp:
      return write([](float largest) {
        const std::uint32_t exponent = (bits_of_float(largest) + 0x00200000) >> 23;  // 1.75 carries
        const std::uint32_t byte = std::max(exponent, 2U) - 2;
        return e8m0_scale(byte, e8m0_value(byte));
      });
    case EncodingRule::mxfp4_gpt_oss:
      return write([](float largest) {
        const std::uint32_t byte = next_power(bits_of_float(largest / 6.0F));
        return e8m0_scale(byte, byte == 0 ? 0.0F : e8m0_value(254 - byte));
      });
    case EncodingRule::nvfp4_modelopt: {
      const float divisor = 6.0F * global;
      return write_e4m3_scales(
          magnitudes, count, scales, factors, 1,
          [divisor](float largest) {
            return std::clamp(largest == 0 ? 1 : largest / divisor, 0x1p-9F, 448.0F);
          },
          [global](float value) { return value * global; });
    }
    case EncodingRule::nvfp4_compressed_tensors:
      return rounding_to(values, [&](auto rounded) {
        write_e4m3_scales(
            magnitudes, count, scales, factors, e4m3_eighth,
            [rounded, global](float largest) { return std::min(global * rounded(largest / 6.0F), 448.0F); },
            [global](float value) { return value / global; });
      });
    case EncodingRule::int4_compressed_tensors:
      return rounding_to(values, [&](auto rounded) {
        const float least = epsilon(values);
        write([rounded, least](float largest) {
          const float found = rounded(largest / 7.5F);
          const float scale = found == 0 ? least : found;
          const auto stored = static_cast<std::uint16_t>(nearest_of_float<bfloat16>(bits_of_float(scale)));
          return Scale<std::uint16_t>{stored, float_of_bits(std::uint32_t{stored} << 16)};
        });
      });
  }
}

}  // namespace shardwright
