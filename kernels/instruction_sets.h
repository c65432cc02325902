#pragma once

// Internal: what each instruction set brings, beside the scalar definition that serves for everything else.

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/rule_codes.h"

namespace shardwright {

/// How a run is written. `streaming` goes past the caches, for destinations that nobody reads soon; whoever
/// asked for it calls `finish_streaming` before the results are handed to another thread.
enum class Store : std::uint8_t { cached, streaming };

/// Converts `count` neighbouring elements. Neither pointer has to be aligned.
using ConvertRun = void (*)(const void* source, std::int64_t count, void* destination, Store store);

/// Decodes `count` neighbouring MXFP8 elements, each with its own scale byte.
using DecodeRun = void (*)(const std::uint8_t* elements, const std::uint8_t* scales, std::int64_t count,
                           void* destination, Store store);

/// Multiplies `count` neighbouring elements, each with its own scale. The products are rounded to F32, then
/// to the destination: the caller sees to it that the floating-point mode is the default one.
using ScaleRun = void (*)(const void* elements, const float* scales, std::int64_t count, void* destination,
                          Store store);

/// Those for each dtype of the destination.
struct ScaleRuns {
  ScaleRun to_bf16 = nullptr;
  ScaleRun to_f16 = nullptr;
  ScaleRun to_f32 = nullptr;
};

/// Those of a dtype of elements.
struct ScaleRunsOf {
  ScaleRuns any;
  ScaleRuns in_range;  ///< faster, see highest_exponent_in_range
};

/// Fills `spread`, up to `total`, with the first scale `first_length` times and the others `length` times
/// each. Writes up to most_spread_beyond more.
template <class Scale>
using SpreadScales = void (*)(const Scale* scales, std::int64_t first_length, std::int64_t length,
                              std::int64_t total, Scale* spread);
inline constexpr std::int64_t most_spread_beyond = 64;

/// Writes table[nibble] for each of the 2 * `bytes` nibbles of packed elements, the low one of a byte first.
using UnpackNibbles = void (*)(const std::uint8_t* packed, std::int64_t bytes, const std::uint8_t* table,
                               std::uint8_t* unpacked);

/// Writes the transpose of rows x columns elements to `panel`: element (r, c) to panel[c * pitch + r].
/// Writes up to whole vectors, so the panel has room for both sizes rounded up to 64 bytes of elements.
using TransposePanel = void (*)(const void* source, std::int64_t row_stride, std::int64_t rows,
                                std::int64_t columns, void* panel, std::int64_t pitch);

/// Writes the codes of `count` neighbouring values, each with its own factor, two in a byte for F4 and I4:
/// then `count` is even. REQUIRES: `shortest_run` values or more, the default floating-point mode.
using EncodeRun = void (*)(const void* source, const float* factors, std::int64_t count, std::uint8_t* codes);

/// Those for each dtype of the values.
struct EncodeRuns {
  EncodeRun from_bf16 = nullptr;
  EncodeRun from_f16 = nullptr;
  EncodeRun from_f32 = nullptr;
};

/// Encodes neighbouring blocks of 32 BF16 values each as MXFP8, a code for each value and a scale for each
/// block, and returns how many: it stops at one that has an infinity or a NaN, or only numbers close to zero.
using EncodeBlocks = std::int64_t (*)(const void* source, std::int64_t blocks, std::uint8_t* codes,
                                      std::uint8_t* scales);

/// The same of blocks that stand side by side, one a row: value (row, column) is source[row + column *
/// column_stride]. Writes code (row, column) to codes[row * row_stride + column] and a row's scale to
/// scales[row * scale_row_stride]. Fetches as many values from `ahead` on meanwhile, which are encoded next.
/// Returns false where EncodeBlocks would stop; then what it has written means nothing. REQUIRES: a multiple
/// of upright_rows (encode.h), at most most_upright_rows.
using EncodeUpright = bool (*)(const void* source, std::int64_t column_stride, std::int64_t rows,
                               const void* ahead, std::uint8_t* codes, std::int64_t row_stride,
                               std::uint8_t* scales, std::int64_t scale_row_stride);

/// So many that a run of values is worth fetching, and few enough that two panels of them fit the second
/// cache.
inline constexpr std::int64_t most_upright_rows = 256;

/// Raises `magnitudes` to the largest magnitudes of the pieces that `total` neighbouring values consist of:
/// the first of `first_length`, the others of `length` each, the last what is left.
using FindMagnitudes = void (*)(const void* source, std::int64_t first_length, std::int64_t length,
                                std::int64_t total, float* magnitudes);

/// Those for each dtype of the values.
struct MagnitudeRuns {
  FindMagnitudes of_bf16 = nullptr;
  FindMagnitudes of_f16 = nullptr;
  FindMagnitudes of_f32 = nullptr;
};

/// Kernels over runs: contiguous in the source and in the destination. All tiles are made of these.
/// A null entry means that the scalar definition is used. The results are the same either way.
struct InstructionSet {
  const char* name = "scalar";

  std::int64_t shortest_run = 0;  ///< the run kernels need at least so many elements

  DecodeRun decode_to_bf16 = nullptr;
  DecodeRun decode_to_bf16_in_range = nullptr;  ///< faster, for scales in `in_range`
  DecodeRun decode_to_f16 = nullptr;
  DecodeRun decode_to_f32 = nullptr;

  std::array<EncodeRuns, code_rules.size()> encode_by_rule{};
  EncodeBlocks encode_mxfp8_blocks = nullptr;
  EncodeUpright encode_mxfp8_upright = nullptr;
  MagnitudeRuns magnitudes;
  MagnitudeRuns magnitudes_without_nan;
  ScaleRunsOf scale_e4m3;
  ScaleRunsOf scale_e5m2;
  ScaleRunsOf scale_unpacked;  ///< e5m2 numbers that are zero or normal, and finite: what nibbles stand for
  ScaleRunsOf scale_f16;
  ScaleRunsOf scale_bf16;
  ScaleRunsOf scale_f32;
  SpreadScales<std::uint8_t> spread_bytes = nullptr;
  SpreadScales<float> spread_floats = nullptr;
  UnpackNibbles unpack_nibbles = nullptr;

  ConvertRun e4m3_to_f32 = nullptr;
  ConvertRun bf16_to_f32 = nullptr;
  ConvertRun bf16_to_f16 = nullptr;
  ConvertRun f16_to_f32 = nullptr;
  ConvertRun f16_to_bf16 = nullptr;
  ConvertRun f32_to_bf16 = nullptr;
  ConvertRun f32_to_f16 = nullptr;
  ConvertRun copy_1_byte = nullptr;
  ConvertRun copy_2_bytes = nullptr;
  ConvertRun copy_4_bytes = nullptr;
  ConvertRun copy_8_bytes = nullptr;
  void (*copy_from_memory)(const void* source, std::int64_t bytes, void* destination) = nullptr;

  TransposePanel transpose_1_byte = nullptr;
  TransposePanel transpose_2_bytes = nullptr;
  TransposePanel transpose_4_bytes = nullptr;
  TransposePanel transpose_8_bytes = nullptr;

  void (*finish_streaming)() = nullptr;
};

/// The scales with which every MXFP8 number, subnormals included, is a normal BF16 (and F32) number, so that
/// scaling is an addition to the exponent: 2^-9 is the least e4m3 number above zero, 448 < 2^9 the greatest.
inline constexpr int lowest_scale_in_range = 10;
inline constexpr int highest_scale_in_range = 246;

/// F32 scales are in range if they are from 2^-highest_exponent_in_range on and below
/// 2^highest_exponent_in_range: their products with FP8 and four-bit numbers are zero, normal numbers of BF16
/// and F32, or infinities and NaNs that the element is.
inline constexpr int highest_exponent_in_range = 100;

/// Those that are compiled in and that this machine can run, best first; "scalar" is not among them.
std::vector<const InstructionSet*> simd_instruction_sets();

/// The one in use, see instruction_set().
const InstructionSet& instruction_set_in_use();

}  // namespace shardwright
