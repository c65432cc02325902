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
#include "kernels/scaled_element.h"
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

/// The F32 number with the magnitude that some bits of a dtype are. A NaN is the one with an otherwise empty
/// payload.
template <FloatFormat format>
float magnitude_of(std::uint32_t bits) {
  const float magnitude = float_of_bits(float_bits<format>(bits));
  return magnitude == magnitude ? magnitude : float_of_bits(0x7FC00000);
}

/// Raises the magnitudes of a column of blocks to those that were found for each of its rows.
template <FloatFormat format, class Bits>
void add_magnitudes(const std::byte* found, std::int64_t row, std::int64_t rows, const BlockGrid& grid,
                    float* magnitudes, std::int64_t row_stride) {
  const auto* of_rows = reinterpret_cast<const Bits*>(found);
  for (std::int64_t begin = 0, end = 0; begin < rows; begin = end) {
    const std::int64_t block_row = block_row_of(grid, row + begin);
    end = std::min(rows, (block_row + 1) * grid.block_rows - grid.first_row - row);
    const Bits largest = *std::max_element(of_rows + begin, of_rows + end);
    float& magnitude = magnitudes[block_row * row_stride];
    magnitude = larger_magnitude(magnitude, magnitude_of<format>(largest));
  }
}

/// find_magnitudes() where rows lie along columns: many rows at once, and nothing is transposed.
void find_magnitudes_down(RaiseMagnitudes raise, const ValueTile& values, const BlockGrid& grid,
                          float* magnitudes, std::int64_t row_stride) {
  constexpr std::int64_t most_rows = 512;
  alignas(64) std::byte of_rows[most_rows * sizeof(float)];
  const std::int64_t blocks = (grid.first_column + values.columns - 1) / grid.block_columns + 1;
  for (std::int64_t row = 0; row < values.rows; row += most_rows) {
    const std::int64_t rows = std::min(most_rows, values.rows - row);
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t begin = std::max<std::int64_t>(block * grid.block_columns - grid.first_column, 0);
      const std::int64_t end = std::min(values.columns, (block + 1) * grid.block_columns - grid.first_column);
      std::memset(of_rows, 0, static_cast<std::size_t>(rows * bytes_of(values.dtype)));
      for (std::int64_t column = begin; column < end; ++column) {
        raise(value_at(values, row, column), rows, of_rows);
      }
      float* const of_block = magnitudes + block;
      if (values.dtype == DType::BF16) {
        add_magnitudes<bfloat16, std::uint16_t>(of_rows, row, rows, grid, of_block, row_stride);
      } else if (values.dtype == DType::F16) {
        add_magnitudes<float16, std::uint16_t>(of_rows, row, rows, grid, of_block, row_stride);
      } else {
        add_magnitudes<float32, std::uint32_t>(of_rows, row, rows, grid, of_block, row_stride);
      }
    }
  }
}

/// What decode() multiplies elements by, for each of rows x columns scales.
std::vector<float> factors_of(DType element, const BlockScales& scales, std::int64_t rows,
                              std::int64_t columns) {
  const Scaling scaling = scaling_of(element, scales, bits_of_float(scales.global));
  const auto bytes = static_cast<std::size_t>(bytes_of(scales.dtype));
  std::vector<float> factors;
  factors.reserve(static_cast<std::size_t>(rows * columns));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const auto index = static_cast<std::size_t>(row * scales.row_stride + column);
      std::uint64_t bits = 0;
      std::memcpy(&bits, static_cast<const std::byte*>(scales.data) + index * bytes, bytes);
      factors.push_back(
          float_of_bits(static_cast<std::uint32_t>(nearest<float32>(exact_factor(scaling, bits)))));
    }
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
  const RaiseMagnitudes raise = raise_kernel(set, values.dtype, leaves_out_nan);
  if (raise != nullptr && values.row_stride == 1 && values.column_stride != 1) {
    return find_magnitudes_down(raise, values, grid, magnitudes, row_stride);
  }
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
  const std::vector<float> factors = factors_of(element, scales, rows, columns);
  encode_each({element}, values, grid, factors.data(), columns, codes);
}

}  // namespace shardwright
