#pragma once

// What a scaled element stands for, whatever its dtype, its scale's and the product: the definition of
// decode(), for host and device.

#include <cstdint>

#include "kernels/decode.h"
#include "kernels/number_formats.h"

namespace shardwright {

/// The value of an element of F4, I4, F8_E4M3, F8_E5M2, F16, BF16, F32 or F64, or of a scale of F8_E4M3 or a
/// wider format, given by its bits.
SHARDWRIGHT_HOST_DEVICE constexpr ExactNumber exact_value_of(DType dtype, std::uint64_t bits) {
  switch (dtype) {
    case DType::F4:
      return exact_value<e2m1>(bits);
    case DType::I4: {
      const bool is_negative = bits < 8;
      return {is_negative ? 8 - bits : bits - 8, 0, is_negative, ExactNumber::Kind::finite};
    }
    case DType::F8_E4M3:
      return exact_value<e4m3fn>(bits);
    case DType::F8_E5M2:
      return exact_value<e5m2>(bits);
    case DType::F16:
      return exact_value<float16>(bits);
    case DType::BF16:
      return exact_value<bfloat16>(bits);
    case DType::F32:
      return exact_value<float32>(bits);
    default:
      return exact_value<float64>(bits);
  }
}

/// The value of a scale given by its bits: of F8_E4M3, F16, BF16, F32, or an e8m0 byte.
SHARDWRIGHT_HOST_DEVICE constexpr ExactNumber exact_scale(DType dtype, std::uint64_t bits) {
  if (dtype != DType::U8 && dtype != DType::F8_E8M0) return exact_value_of(dtype, bits);
  return scaled(ExactNumber{1, 0, false, ExactNumber::Kind::finite}, static_cast<std::uint8_t>(bits));
}

SHARDWRIGHT_HOST_DEVICE constexpr ExactNumber rounded_to_f32(const ExactNumber& number) {
  return exact_value<float32>(nearest<float32>(number));
}

/// How the scales of a tile become factors and what they do to its elements: the part of BlockScales that is
/// arithmetic.
struct Scaling {
  DType element = DType::F8_E4M3;
  DType scale = DType::F8_E8M0;
  Product product = Product::exact_once;
  bool code_eight_is_plus_zero = false;    ///< of F4
  std::uint32_t global_bits = 0x3F800000;  ///< of an F32 number
};

SHARDWRIGHT_HOST_DEVICE constexpr Scaling scaling_of(DType element, const BlockScales& scales,
                                                     std::uint32_t global_bits) {
  return {element, scales.dtype, scales.product,
          scales.code_eight_is_plus_zero || scales.product == Product::modelopt_nvfp4, global_bits};
}

/// What a scale, given by its bits, multiplies elements by.
SHARDWRIGHT_HOST_DEVICE constexpr ExactNumber exact_factor(const Scaling& scaling, std::uint64_t scale) {
  const ExactNumber stored = exact_scale(scaling.scale, scale);
  const ExactNumber global = exact_value<float32>(scaling.global_bits);
  if (scaling.product == Product::modelopt_nvfp4) return rounded_to_f32(scaled(stored, global));
  if (scaling.product == Product::compressed_tensors_nvfp4) return rounded_to_f32(quotient(stored, global));
  return stored;
}

/// The number that an element and its scale, both given by their bits, stand for before it is rounded to the
/// destination's dtype.
SHARDWRIGHT_HOST_DEVICE constexpr ExactNumber exact_product(const Scaling& scaling, std::uint64_t element,
                                                            std::uint64_t scale) {
  if (scaling.element == DType::F4 && element == 8 && scaling.code_eight_is_plus_zero) element = 0;
  const ExactNumber product = scaled(exact_value_of(scaling.element, element), exact_factor(scaling, scale));
  return scaling.product == Product::exact_once ? product : rounded_to_f32(product);
}

}  // namespace shardwright
