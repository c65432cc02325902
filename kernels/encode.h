#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/decode.h"
#include "kernels/dtype.h"

namespace shardwright {

/// Encodes to MXFP8: F8_E4M3 elements and, for each 1 x 32 block of them, one e8m0 byte (the format is that
/// of OCP Microscaling Formats v1.0; which scale a block gets is up to the encoder).
///
/// The rule. A block's scale is the smallest power of two, from 2^-127 on, at which its largest magnitude is
/// at most 448 * scale. Its elements are value / scale, rounded once, to nearest even.
///  * A block of zeros gets the byte 0, that of 2^-127; zeros keep their signs.
///  * A NaN becomes the NaN of its sign and has no say in the scale.
///  * An infinity counts as 2^128: the scale is 2^120, the infinity becomes 448 of its sign, and is decoded
///    to an infinity again (in BF16 and F32). The numbers beside it are those of any block of that scale.
///
/// What was decoded from MXFP8 is decoded to the same bits again after it was encoded, whatever the scale
/// was: let x = round(e * s) be the block's values, e e4m3 numbers. Then the largest is at most 448 * s,
/// which the destination's dtype holds exactly, so the scale found is t <= s. e has 4 significant bits, and x
/// has no more: rounding to a coarser grid never adds any. x is a multiple of t's finest step, 2^-9 * t,
/// because it was one of 2^-9 * s, or of the dtype's own smallest step where that is coarser. And |x| <= 448
/// * t. So x / t is an e4m3 number. Where x is infinite, s was at least 2^120, and all of this holds for t =
/// 2^120.

/// Values of a tensor, anywhere in memory: element (r, c) is data[r * row_stride + c * column_stride].
struct ValueTile {
  const void* data = nullptr;
  DType dtype = DType::BF16;  ///< BF16, F16 or F32
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = 0;     ///< elements
  std::int64_t column_stride = 1;  ///< elements
};

/// Blocks that reach beyond a tile: the scales that they have as a whole, one byte for each row of the tile;
/// null where the tile holds all that the block consists of.
struct SharedScales {
  const std::uint8_t* first = nullptr;  ///< of the block that the tile's first column is in
  const std::uint8_t* last = nullptr;   ///< of the block that its last column is in
};

/// Where a tile of encoded values goes.
struct EncodedTile {
  std::uint8_t* elements = nullptr;   ///< element (r, c) at [r * row_stride + c]
  std::int64_t row_stride = 0;        ///< bytes
  std::uint8_t* scales = nullptr;     ///< of the block that column 0 is in; the next blocks follow
  std::int64_t scale_row_stride = 0;  ///< bytes
};

inline constexpr std::int64_t mxfp8_block_columns = 32;

/// Values whose columns are runs in memory (row_stride 1) are encoded so many rows at a time: tiles with a
/// multiple of them are quickest. A cache line has fewer.
inline constexpr std::int64_t upright_rows = 64;

/// True for the dtypes that can be encoded.
bool can_encode(DType dtype);

/// Encodes a tile whose column 0 is column `first_column` (0 .. 31) of its block, and writes a scale for each
/// block that the tile touches, shared ones included. Thread-safe as long as no two calls write the same
/// byte.
void encode(const ValueTile& values, std::int64_t first_column, const SharedScales& shared,
            const EncodedTile& encoded);

/// The scales alone: what encode() finds without shared scales. The scale of a block that several tiles share
/// is the largest byte that they find.
void find_scales(const ValueTile& values, std::int64_t first_column, std::uint8_t* scales,
                 std::int64_t scale_row_stride);

// --- by named rules ---------------------------------------------------------------------------------------

/// How a tool finds scales and codes. Two rules give different bytes for the same weights, so a release that
/// is to be as that tool makes it names its rule.
enum class EncodingRule : std::uint8_t {
  /// encode() above.
  mxfp8,

  /// transformers 5.23 (integrations/finegrained_fp8.py, Fp8Quantize), 128 x 128: s = F32(F32(1 / largest) *
  /// 448), the scale is F32(1 / s), the code that of F32(value * s). A block of zeros has the scale 1.
  block_fp8,

  /// nvidia-modelopt 0.47 (qtensor/mxfp4_tensor.py): the least power of two, from 2^-127 on, that F32(largest
  /// / 6) is not above. Ties go to the smaller code, and each zero is code 8. ModelOpt takes the logarithm in
  /// F32, so that a quotient up to 2^-20 above a power of two may count as that power: never one of a BF16 or
  /// F16 number.
  mxfp4_modelopt,

  /// compressed-tensors 0.20 (quantization/utils/mxfp_utils.py): the power of two of `largest`, or the next
  /// one if its mantissa is 1.75 or more, over 4; from 2^-127 on. Ties go to even codes. compressed-tensors
  /// loses scales below 2^-24 of F16 values, as it computes in F16; here they are those of the same F32
  /// values.
  mxfp4_ocp,

  /// triton_kernels' downcast_to_mxfp, as gpt-oss and transformers use it: F32(largest / 6) rounded up to a
  /// power of two, from 2^-126 on. Ties go to the larger code. A block of zeros has the byte 0.
  mxfp4_gpt_oss,

  /// nvidia-modelopt 0.47 (qtensor/nvfp4_tensor.py): global = F32(largest of all / 2688); the scale is the
  /// e4m3 number of F32(largest / F32(6 * global)), from 2^-9 to 448, or 1 for a block of zeros. Ties go to
  /// even codes.
  nvfp4_modelopt,

  /// compressed-tensors 0.20 (quantization/utils/helpers.py): global = (1 / largest of all) * 2688; the scale
  /// is the e4m3 number of F32(global * (largest / 6)), at most 448, or 0.125 where that is zero. What is
  /// computed here is rounded to the dtype of the values, as torch does. Ties go to even codes.
  nvfp4_compressed_tensors,

  /// compressed-tensors 0.20, groups of 32, BF16 scales: largest / 7.5, or 2^-7 for a block of zeros; the
  /// code is that of value / scale, both rounded to the dtype of the values, BF16 scales with F16 values to
  /// F32.
  int4_compressed_tensors,
};

/// What a rule makes. decode() with `product` and the same global scale is its inverse.
struct EncodedFormat {
  EncodingRule rule;
  std::string_view name;  ///< such as "nvfp4-modelopt"
  DType element;
  DType scale;
  std::int64_t block_rows;
  std::int64_t block_columns;
  Product product;
  bool has_global;
};

const EncodedFormat& format_of(EncodingRule rule);

/// The rule of a name; nothing for a name that there is not.
std::optional<EncodingRule> encoding_rule_named(std::string_view name);

/// The blocks that the values of a tile are in: value (r, c) is in that of row (first_row + r) / block_rows
/// and column (first_column + c) / block_columns.
struct BlockGrid {
  std::int64_t block_rows = 1;
  std::int64_t block_columns = 32;
  std::int64_t first_row = 0;     ///< 0 .. block_rows - 1
  std::int64_t first_column = 0;  ///< 0 .. block_columns - 1
};

/// The larger of two magnitudes; NaN is larger than any number.
float larger_magnitude(float a, float b);

/// Of each block that the tile touches the largest magnitude of the values that lie in the tile; NaN if one
/// is, unless NaNs are left out, as mxfp8 does. A block that several tiles share has the largest of theirs,
/// and a tensor the largest of its blocks.
void find_magnitudes(const ValueTile& values, const BlockGrid& grid, float* magnitudes,
                     std::int64_t row_stride, bool leaves_out_nan = false);

/// The global scale of a tensor of `values` with this largest magnitude; 1 for a rule that has none, and, as
/// compressed-tensors has it, where the largest is so small that it would be infinite. Throws
/// std::invalid_argument if `largest` is not finite.
float global_scale(EncodingRule rule, DType values, float largest);

/// The scales of blocks with these largest magnitudes, as they are stored, and the factor by which the rule
/// divides (mxfp8, block_fp8 and mxfp4_gpt_oss: multiplies) values before it rounds them to codes. Throws
/// std::invalid_argument if a magnitude is not finite: four bits have nothing to stand for it.
void scales_of_magnitudes(EncodingRule rule, DType values, const float* magnitudes, std::int64_t count,
                          float global, void* scales, float* factors);

/// Where a tile of codes goes: element (r, c) at [r * row_stride + c].
struct CodeTile {
  void* data = nullptr;                ///< the byte that element (0, 0) begins in
  std::int64_t row_stride = 0;         ///< elements; even for F4 and I4
  bool begins_in_high_nibble = false;  ///< of F4 and I4: element (0, 0) is the upper half of its byte
};

/// The codes of `values` with the factors that scales_of_magnitudes() gave for the blocks of `grid`,
/// `row_stride` from one row of them to the next. A byte that an element shares with one outside the tile
/// keeps that one: such tiles must not be written at the same time.
void encode_elements(EncodingRule rule, const ValueTile& values, const BlockGrid& grid, const float* factors,
                     std::int64_t row_stride, const CodeTile& codes);

/// The codes of `values` with scales that are there already, those of another checkpoint for instance:
/// nearest to F32(value / factor), ties to even codes, where the factor is what decode() multiplies by. What
/// is too large becomes the largest, NaN of F8_E4M3 its NaN, else 0. What decode() made, with the same
/// scales, of codes other than the 8 that it takes for +0 becomes these codes again, as long as scales are
/// finite and not zero, and nothing fell below the normal range of the dtype of the values. REQUIRES:
/// `element` is F8_E4M3, F4 or I4.
void encode_with_scales(DType element, const ValueTile& values, const BlockScales& scales,
                        const CodeTile& codes);

}  // namespace shardwright
