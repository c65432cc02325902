#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/dtype.h"

namespace shardwright {

/// A two-dimensional piece of a source tensor as it lies in staging: rows of contiguous elements.
struct SourceTile {
  const void* data = nullptr;  ///< element (0, 0); no alignment is required
  DType dtype = DType::BF16;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::int64_t row_stride = 0;  ///< elements from one row to the next
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

  /// U8 or F8_E8M0: e8m0 bytes (OCP MX v1.0), the factor is 2^(byte - 127), 255 is NaN. F32 or BF16: the
  /// factor.
  DType dtype = DType::F8_E8M0;
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

/// True if `decode` can take these elements with these scales: F8_E4M3 or F8_E5M2 with U8, F8_E8M0, F32,
/// BF16.
bool can_decode(DType element, DType scale);

/// The same for block-scaled elements: writes round(element * scale) in BF16, F16, F32 or F64.
///
/// With e8m0 scales the product is exact and rounded once, to the destination's dtype. With F32 or BF16
/// scales it is rounded to F32 first, whatever the destination, as FP8 checkpoints with such scales are
/// meant: so do the dequantisations of DeepSeek V3 (inference/kernel.py, weight_dequant) and of transformers
/// (Fp8Dequantize). A NaN element, a NaN scale and infinity times zero give NaN with the sign of the element.
///
/// REQUIRES: can_decode(source.dtype, scales.dtype). Does not depend on the caller's floating-point mode
/// either.
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
