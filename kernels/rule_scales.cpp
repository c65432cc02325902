#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/encode.h"
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

float e4m3_value(std::uint8_t code) { return float_of_bits(float_bits<e4m3fn>(code)); }

/// The e4m3 code nearest to a number; what is too large becomes 448.
std::uint8_t e4m3_code(float value) { return encoded_float(bits_of_float(value), 127); }

float e8m0_value(std::uint32_t byte) {
  return float_of_bits(float_bits_of_e8m0(static_cast<std::uint8_t>(byte)));
}

// The e8m0 bytes of powers of two. A byte is the exponent's field of an F32 number; what is added to the bits
// carries into it.

/// Of the least one, from 2^-127 on, that is not below a number.
std::uint32_t power_not_below(float number) {
  const std::uint32_t bits = bits_of_float(number);
  return bits <= 0x00400000 ? 0 : (bits + 0x007FFFFF) >> 23;
}

/// A scale as it is stored, by its bits, and the factor for values.
struct Scale {
  std::uint32_t stored = 0;
  float factor = 1;
};

template <EncodingRule rule>
Scale scale_of(DType values, float largest, float global) {
  if constexpr (rule == EncodingRule::mxfp8) {
    const std::uint8_t byte = smallest_scale(exact_value<float32>(bits_of_float(largest)));
    return {byte, e8m0_value(254U - byte)};
  }
  if constexpr (rule == EncodingRule::block_fp8) {
    const float factor = largest > 0 ? 1.0F / largest * 448.0F : 1.0F;
    return {bits_of_float(1.0F / factor), factor};
  }
  if constexpr (rule == EncodingRule::mxfp4_modelopt) {
    const std::uint32_t byte = power_not_below(largest / 6.0F);
    return {byte, e8m0_value(byte)};
  }
  if constexpr (rule == EncodingRule::mxfp4_ocp) {
    // A mantissa of 1.75 or more carries.
    const std::uint32_t exponent = (bits_of_float(largest) + 0x00200000) >> 23;
    const std::uint32_t byte = std::max(exponent, 2U) - 2;
    return {byte, e8m0_value(byte)};
  }
  if constexpr (rule == EncodingRule::mxfp4_gpt_oss) {
    const std::uint32_t byte = (bits_of_float(largest / 6.0F) + 0x007FFFFF) >> 23;
    return {byte, byte == 0 ? 0.0F : e8m0_value(254 - byte)};
  }
  if constexpr (rule == EncodingRule::nvfp4_modelopt) {
    const float scale = largest == 0 ? 1 : largest / (6.0F * global);
    const std::uint8_t code = e4m3_code(std::clamp(scale, 0x1p-9F, 448.0F));
    return {code, e4m3_value(code) * global};
  }
  if constexpr (rule == EncodingRule::nvfp4_compressed_tensors) {
    std::uint8_t code = e4m3_code(std::min(global * in_dtype(values, largest / 6.0F), 448.0F));
    if (code == 0) code = e4m3_code(0.125F);
    return {code, e4m3_value(code) / global};
  }
  if constexpr (rule == EncodingRule::int4_compressed_tensors) {
    float scale = in_dtype(values, largest / 7.5F);
    if (scale == 0) scale = epsilon(values);
    const std::uint32_t stored = nearest_of_float<bfloat16>(bits_of_float(scale));
    return {stored, float_of_bits(stored << 16)};
  }
}

template <EncodingRule rule>
void find_scales_by(DType values, const float* magnitudes, std::int64_t count, float global, void* scales,
                    float* factors) {
  const auto bytes = static_cast<std::size_t>(bytes_of(format_of(rule).scale));
  auto* stored = static_cast<std::byte*>(scales);
  for (std::int64_t i = 0; i < count; ++i, stored += bytes) {
    const Scale scale = scale_of<rule>(values, magnitudes[i], global);
    std::memcpy(stored, &scale.stored, bytes);
    factors[i] = scale.factor;
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
  const auto find = [&](auto find_by) { find_by(values, magnitudes, count, global, scales, factors); };
  switch (rule) {
    case EncodingRule::mxfp8:
      return find(find_scales_by<EncodingRule::mxfp8>);
    case EncodingRule::block_fp8:
      return find(find_scales_by<EncodingRule::block_fp8>);
    case EncodingRule::mxfp4_modelopt:
      return find(find_scales_by<EncodingRule::mxfp4_modelopt>);
    case EncodingRule::mxfp4_ocp:
      return find(find_scales_by<EncodingRule::mxfp4_ocp>);
    case EncodingRule::mxfp4_gpt_oss:
      return find(find_scales_by<EncodingRule::mxfp4_gpt_oss>);
    case EncodingRule::nvfp4_modelopt:
      return find(find_scales_by<EncodingRule::nvfp4_modelopt>);
    case EncodingRule::nvfp4_compressed_tensors:
      return find(find_scales_by<EncodingRule::nvfp4_compressed_tensors>);
    case EncodingRule::int4_compressed_tensors:
      return find(find_scales_by<EncodingRule::int4_compressed_tensors>);
  }
}

}  // namespace shardwright
