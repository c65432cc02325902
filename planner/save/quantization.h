#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/encode.h"
#include "planner/names/catalog.h"
#include "planner/names/encodings.h"

namespace shardwright {

/// A way to quantize weights: the rule by which scales and codes are found, and the names and dtypes under
/// which the tool that has the rule stores them.
struct Quantization {
  std::string_view name;  ///< such as "nvfp4-modelopt"; what callers ask for
  EncodingRule rule;
  std::string_view encoding;       ///< of known_encodings()
  std::string_view weight_ending;  ///< behind the weight's name in files; "_packed", "_blocks" or nothing
  DType stored;                    ///< of the weight in files: U8, I32, or that of its elements
  std::string_view scale_suffix;   ///< behind the weight's name: see Encoding
  std::string_view stored_scale;   ///< the same in files
  Shape global_shape = {};         ///< of the global scale, if the encoding has one
  bool has_shape = false;          ///< "<weight>_shape", two I64 numbers, lies beside it

  /// Whether all values of a weight have a say in each of its scales.
  bool has_global() const { return format_of(rule).has_global; }
};

/// All there are:
///     mxfp8, block_fp8                  X F8_E4M3, X_scale_inv U8 or F32
///     mxfp4-modelopt                    X.weight U8, X.weight_scale U8
///     mxfp4-ocp                         X.weight_packed U8, X.weight_scale U8
///     mxfp4-gpt-oss                     X_blocks U8 [.., C / 32, 16], X_scales U8
///     nvfp4-modelopt                    X.weight U8, X.weight_scale F8_E4M3, X.weight_scale_2 F32 []
///     nvfp4-compressed-tensors          X.weight_packed U8, X.weight_scale, X.weight_global_scale F32 [1]
///     int4-compressed-tensors           X.weight_packed I32, X.weight_scale BF16, X.weight_shape I64 [2]
///     int4-compressed-tensors-group128, int4-compressed-tensors-channel    likewise
std::span<const Quantization> quantizations();

/// That of a name; null for a name that there is not.
const Quantization* quantization_named(std::string_view name);

/// The names of all, for messages.
std::string names_of_quantizations();

/// How a weight of this shape, a matrix or a stack of them, is stored so.
Encoding encoding_by(const Quantization& quantization, const Shape& weight_shape);

/// Why a weight cannot be stored so, for messages; empty if it can.
std::string fault_of_quantizing(const Quantization& quantization, const std::string& weight_name,
                                const Shape& weight_shape);

/// Gives a tensor of encoded elements, of the weight's name and shape, the form that files have of it.
void store_as(const Quantization& quantization, SourceTensor& weight);

/// The tensor of its scales; no file yet, like the next.
SourceTensor scales_by(const Quantization& quantization, const Encoding& encoding,
                       const SourceTensor& weight);

/// Whether a name fits a pattern, in which * stands for any characters, ? for one.
bool fits_pattern(std::string_view name, std::string_view pattern);

}  // namespace shardwright
