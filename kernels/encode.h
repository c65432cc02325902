#pragma once

#include <cstdint>

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
///  to
///    an infinity again (in BF16 and F32). The numbers beside it are those of any block of that scale.
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

}  // namespace shardwright
