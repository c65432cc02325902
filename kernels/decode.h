#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/product.h"

namespace shardwright {

/// A two-dimensional piece of a source tensor as it lies in staging: rows of contiguous elements.
struct SourceTile {
  const void* data = nullptr;  ///< the byte that element (0, 0) begins in; no alignment is required
  DType dtype = DType::BF16;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = 0;         ///< elements from one row to the next; even for F4 and I4
  bool begins_in_high_nibble = false;  ///< of F4 and I4: element (0, 0) is the upper half of its byte
};

/// The scales of a block-scaled tile, one for each block. Element (r, c) of the tile belongs to scale number
///   ((first_row + r) / block_rows) * row_stride + (first_column + c) / block_columns.
/// One scale for a whole tensor is a block as large as the tensor.
struct BlockScales {
  const void* data = nullptr;   ///< no alignment is required
  std::int64_t row_stride = 0;  ///< scales from one row of them to the next
  std::int64_t block_rows = 1;
  std::int64_t block_columns = 32;
  std::int64_t first_row = 0;     ///< where the tile's row 0 lies inside its block, 0 .. block_rows - 1
  std::int64_t first_column = 0;  ///< where the tile's column 0 lies inside its block

  /// U8 or F8_E8M0: e8m0 bytes (OCP MX v1.0), the factor is 2^(byte - 127), 255 is NaN. F8_E4M3, F16, BF16 or
  /// F32: the factor.
  DType dtype = DType::F8_E8M0;

  Product product = Product::exact_once;
  float global = 1;  ///< of the two NVFP4 products: one factor, or divisor, for the whole tensor

  /// Code 8 of F4, which is -0 in OCP MX, stands for +0: DeepSeek V4 (inference/convert.py).
  bool code_eight_is_plus_zero = false;
};

/// Where a tile goes: element (r, c) is written to data[r * row_stride + c * column_stride].
/// Any strides will do, negative and transposed ones included, as long as no two elements coincide.
struct DestinationTile {
  void* data = nullptr;
  DType dtype = DType::BF16;
  std::int64_t row_stride = 0;     ///< elements
  std::int64_t column_stride = 1;  ///< elements
};

/// True if `place` and `decode` can turn `source` elements into `destination` elements: equal dtypes always,
/// and any of F16, BF16, F32, F64, F8_E4M3, F8_E5M2 into any of BF16, F16, F32, F64.
bool can_convert(DType source, DType destination);

/// Writes each element of `source` to its place in `destination`. Unequal dtypes are converted by rounding
/// the exact value once, to nearest even: too large becomes infinity, too small a subnormal or zero, NaN
/// stays NaN. Equal dtypes are copied bit for bit. REQUIRES: can_convert(source.dtype, destination.dtype).
/// Thread-safe as long as no two calls write the same element. Does not depend on the caller's FTZ/DAZ mode.
void place(const SourceTile& source, const DestinationTile& destination);

/// True if `decode` can take these elements with these scales:
///     F8_E4M3, F8_E5M2    U8, F8_E8M0, F16, BF16, F32
///     F4, I4              U8, F8_E8M0, F8_E4M3, F16, BF16, F32
///     F16, BF16, F32      F16, BF16, F32
bool can_decode(DType element, DType scale);

/// Throws std::invalid_argument, saying why, for elements and scales that `decode` refuses.
void expect_decodable(DType element, const BlockScales& scales);

/// The same for block-scaled elements: writes element * scale, rounded as `scales.product` says, in BF16,
/// F16, F32 or F64. A NaN element, a NaN scale and infinity times zero give NaN with the sign of the element.
///
/// REQUIRES: can_decode(source.dtype, scales.dtype); the NVFP4 products only for F4 with F8_E4M3 scales, and
/// a global scale other than 1 only for them. See expect_decodable. Does not depend on the caller's
/// floating-point mode either.
void decode(const SourceTile& source, const BlockScales& scales, const DestinationTile& destination);

/// The instruction sets that this build holds and this machine can run, best first; the last is "scalar", the
/// plain definition that all others must equal.
std::vector<std::string> instruction_sets();

/// The instruction set in use: the best one, unless the environment variable SHARDWRIGHT_SIMD named another
/// when it was first asked for ("scalar", "avx2", ...).
std::string instruction_set();

/// Uses another of instruction_sets() from now on, in all threads; "" means the best. For tests and
/// benchmarks. Throws std::invalid_argument, with the names there are, for a name that is not among them.
void use_instruction_set(const std::string& name);

}  // namespace shardwright
