#pragma once

#include <cstdint>

namespace shardwright {

/// How often the product of an element and its scale is rounded. Bits of releases are those of the tool that
/// wrote them, so none of these may stand for another.
enum class Product : std::uint8_t {
  /// The exact product, rounded once to the destination's dtype. MXFP8, MXFP4, INT4 of compressed-tensors,
  /// FP8 with e8m0 scales; plain elements times a factor.
  exact_once,

  /// Rounded to F32 first, whatever the destination. So do the dequantizations of DeepSeek V3
  /// (inference/kernel.py, weight_dequant) and of transformers (Fp8Dequantize) with F32 and BF16 scales.
  to_f32_first,

  /// F32(element * F32(scale * global)), then the destination's dtype; code 8 of F4 is +0. ModelOpt 0.47
  /// (qtensor/nvfp4_tensor.py).
  modelopt_nvfp4,

  /// F32(element * F32(scale / global)), then the destination's dtype; code 8 of F4 is -0.
  /// compressed-tensors 0.20 (compressors/nvfp4/base.py).
  compressed_tensors_nvfp4,
};

}  // namespace shardwright
