#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/decode.h"
#include "kernels/encode.h"
#include "kernels/encode_runs.h"
#include "kernels/float_arithmetic.h"
#include "kernels/floating_point_mode.h"
#include "kernels/instruction_sets.h"
#include "kernels/rule_codes.h"
#include "kernels/value_lines.h"

namespace shardwright {
namespace {

CodeRule code_rule_of(EncodingRule rule, DType values) {
  switch (rule) {
    case EncodingRule::mxfp8:
    case EncodingRule::block_fp8:
      return {DType::F8_E4M3, Change::multiply};
    case EncodingRule::mxfp4_modelopt:
      return {DType::F4, Change::divide, Ties::down, Sign::not_above_zero};
    case EncodingRule::mxfp4_gpt_oss:
      return {DType::F4, Change::multiply, Ties::up, Sign::as_it_is};
    case EncodingRule::mxfp4_ocp:
    case EncodingRule::nvfp4_modelopt:
    case EncodingRule::nvfp4_compressed_tensors:
      return {DType::F4, Change::divide, Ties::to_even, Sign::below_zero};
    case EncodingRule::int4_compressed_tensors:
      return {DType::I4, Change::divide, Ties::to_even, Sign::as_it_is, values == DType::BF16};
  }
  return {};
}

void encode_each(const CodeRule& rule, const ValueTile& values, const BlockGrid& grid, const float* factors,
                 std::int64_t row_stride, const CodeTile& to) {
  const InstructionSet& set = instruction_set_in_use();
  const Encoder encoder = encoder_of(set, rule, values.dtype);
  auto* codes = static_cast<std::uint8_t*>(to.data);
  alignas(64) float spread[line_columns + most_spread_beyond];
  for_each_line(set, values, grid, [&](const Line& line) {
    const LineBlocks blocks = blocks_of(grid, line);
    const float* of_line = factors + block_row_of(grid, line.row) * row_stride + blocks.first;
    spread_factors(set, of_line, blocks.first_length, grid.block_columns, line.columns, spread);
    encode_values(encoder, line.values, spread, line.columns, codes,
                  line.row * to.row_stride + line.column + (to.begins_in_high_nibble ? 1 : 0));
  });
}

/// The number that the bits of a scale stand for; an e8m0 byte for a dtype that is no float.
float scale_value(DType dtype, std::uint32_t bits) {
  switch (dtype) {
    case DType::F32:
      return float_of_bits(bits);
    case DType::BF16:
      return float_of_bits(float_bits<bfloat16>(bits));
    case DType::F16:
      return float_of_bits(float_bits<float16>(bits));
    case DType::F8_E4M3:
      return float_of_bits(float_bits<e4m3fn>(bits));
    default:
      return float_of_bits(float_bits_of_e8m0(static_cast<std::uint8_t>(bits)));
  }
}

/// What decode() multiplies elements by, for each of rows x columns scales: exact_factor() of
/// scaled_element.h, rounded to F32.
std::vector<float> factors_of(const BlockScales& scales, std::int64_t rows, std::int64_t columns) {
  const auto bytes = static_cast<std::size_t>(bytes_of(scales.dtype));
  std::vector<float> factors(static_cast<std::size_t>(rows * columns));
  float* factor = factors.data();
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::byte* from =
        static_cast<const std::byte*>(scales.data) + row * scales.row_stride * bytes_of(scales.dtype);
    for (std::int64_t column = 0; column < columns; ++column, from += bytes) {
      std::uint32_t bits = 0;
      std::memcpy(&bits, from, bytes);
      *factor++ = scale_value(scales.dtype, bits);
    }
  }
  if (scales.product == Product::modelopt_nvfp4) {
    for (float& one : factors) one *= scales.global;
  } else if (scales.product == Product::compressed_tensors_nvfp4) {
    for (float& one : factors) one /= scales.global;
  }
  return factors;
}

void expect_encodable(DType values, std::string_view as) {
  if (can_encode(values)) return;
  throw std::invalid_argument("cannot encode " + std::string(name_of(values)) + " values as " +
                              std::string(as) + "; expected BF16, F16 or F32");
}

}  // namespace

float larger_magnitude(float a, float b) {
  // Bits of magnitudes compare as the magnitudes do, and those of NaN are the largest.
  const auto magnitude = [](float number) { return bits_of_float(number) & 0x7FFFFFFF; };
  return float_of_bits(std::max(magnitude(a), magnitude(b)));
}

void find_magnitudes(const ValueTile& values, const BlockGrid& grid, float* magnitudes,
                     std::int64_t row_stride, bool leaves_out_nan) {
  expect_encodable(values.dtype, "blocks");
  if (values.rows <= 0 || values.columns <= 0) return;
  const DefaultFloatingPointMode mode;
  const std::int64_t block_count = (grid.first_column + values.columns - 1) / grid.block_columns + 1;
  for (std::int64_t row = 0; row <= block_row_of(grid, values.rows - 1); ++row) {
    std::fill_n(magnitudes + row * row_stride, block_count, 0.0F);
  }
  const InstructionSet& set = instruction_set_in_use();
  const FindMagnitudes find = magnitudes_kernel(set, values.dtype, leaves_out_nan);
  for_each_line(set, values, grid, [&](const Line& line) {
    const LineBlocks blocks = blocks_of(grid, line);
    find(line.values, blocks.first_length, grid.block_columns, line.columns,
         magnitudes + block_row_of(grid, line.row) * row_stride + blocks.first);
  });
}

void encode_elements(EncodingRule rule, const ValueTile& values, const BlockGrid& grid, const float* factors,
                     std::int64_t row_stride, const CodeTile& codes) {
  expect_encodable(values.dtype, format_of(rule).name);
  const DefaultFloatingPointMode mode;
  encode_each(code_rule_of(rule, values.dtype), values, grid, factors, row_stride, codes);
}

void encode_with_scales(DType element, const ValueTile& values, const BlockScales& scales,
                        const CodeTile& codes) {
  expect_encodable(values.dtype, name_of(element));
  expect_decodable(element, scales);
  if (element != DType::F8_E4M3 && element != DType::F4 && element != DType::I4) {
    throw std::invalid_argument("cannot encode " + std::string(name_of(element)) +
                                " elements with scales; expected F8_E4M3, F4 or I4");
  }
  if (values.rows <= 0 || values.columns <= 0) return;
  const DefaultFloatingPointMode mode;
  const BlockGrid grid{scales.block_rows, scales.block_columns, scales.first_row, scales.first_column};
  const std::int64_t rows = block_row_of(grid, values.rows - 1) + 1;
  const std::int64_t columns = (grid.first_column + values.columns - 1) / grid.block_columns + 1;
  const std::vector<float> factors = factors_of(scales, rows, columns);
  encode_each({element}, values, grid, factors.data(), columns, codes);
}

}  // namespace shardwright
