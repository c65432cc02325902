#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kernels/decode.h"
#include "kernels/encode.h"
#include "kernels/float_arithmetic.h"
#include "kernels/floating_point_mode.h"
#include "kernels/instruction_sets.h"
#include "kernels/rule_codes.h"
#include "kernels/scaled_element.h"

namespace shardwright {
namespace {

// --- lines: rows of values that lie next to each other
// ----------------------------------------------------

// Factors are spread, one for each value, over so many columns of a row at a time.
constexpr std::int64_t line_columns = 2048;

// What is regrouped at once if the columns of a row are not neighbours: a cache line of each column, as many
// columns as stay in the first-level cache.
constexpr std::int64_t panel_bytes = 64;
constexpr std::int64_t panel_columns = 256;

// Between rows of a panel, so that they do not all fall into the same few sets of the cache.
constexpr std::int64_t panel_padding_bytes = 64;

/// Values of a row, from a column on, next to each other.
struct Line {
  const std::byte* values;
  std::int64_t row;
  std::int64_t column;
  std::int64_t columns;
};

const std::byte* value_at(const ValueTile& tile, std::int64_t row, std::int64_t column) {
  return static_cast<const std::byte*>(tile.data) +
         (row * tile.row_stride + column * tile.column_stride) * bytes_of(tile.dtype);
}

/// Writes rows x columns of a tile to a panel, row behind row, `pitch` values from one to the next.
void fill_panel(const InstructionSet& set, const ValueTile& values, std::int64_t row, std::int64_t rows,
                std::int64_t column, std::int64_t columns, std::byte* panel, std::int64_t pitch) {
  const std::byte* from = value_at(values, row, column);
  if (values.row_stride != 1 && rows != 1) {
    for (std::int64_t r = 0; r < rows; ++r) {
      place({value_at(values, row + r, column), values.dtype, columns, 1, values.column_stride},
            {panel + r * pitch * bytes_of(values.dtype), values.dtype, 1, 1});
    }
    return;
  }
  // The tile's columns, which its rows lie along, are the rows of what is transposed.
  const TransposePanel transpose =
      bytes_of(values.dtype) == 2 ? set.transpose_2_bytes : set.transpose_4_bytes;
  if (transpose != nullptr) return transpose(from, values.column_stride, columns, rows, panel, pitch);
  place({from, values.dtype, columns, rows, values.column_stride}, {panel, values.dtype, 1, pitch});
}

template <class Use>
void for_each_line(const InstructionSet& set, const ValueTile& values, Use use) {
  if (values.column_stride == 1 || values.columns == 1) {
    for (std::int64_t row = 0; row < values.rows; ++row) {
      for (std::int64_t column = 0; column < values.columns; column += line_columns) {
        use(Line{value_at(values, row, column), row, column,
                 std::min(line_columns, values.columns - column)});
      }
    }
    return;
  }
  const std::int64_t size = bytes_of(values.dtype);
  const std::int64_t panel_rows = panel_bytes / size;
  const std::int64_t pitch = panel_columns + panel_padding_bytes / size;
  alignas(64) std::byte panel[panel_bytes * (panel_columns + panel_padding_bytes)];
  for (std::int64_t column = 0; column < values.columns; column += panel_columns) {
    const std::int64_t columns = std::min(panel_columns, values.columns - column);
    for (std::int64_t row = 0; row < values.rows; row += panel_rows) {
      const std::int64_t rows = std::min(panel_rows, values.rows - row);
      fill_panel(set, values, row, rows, column, columns, panel, pitch);
      for (std::int64_t r = 0; r < rows; ++r) use(Line{panel + r * pitch * size, row + r, column, columns});
    }
  }
}

/// Where the blocks lie of which a line has something.
struct LineBlocks {
  std::int64_t first;  ///< in its row of blocks
  std::int64_t count;
  std::int64_t first_length;  ///< columns from the line's first to the first block's end
};

LineBlocks blocks_of(const BlockGrid& grid, const Line& line) {
  const std::int64_t begin = grid.first_column + line.column;
  const std::int64_t first = begin / grid.block_columns;
  return {first, (begin + line.columns - 1) / grid.block_columns + 1 - first,
          (first + 1) * grid.block_columns - begin};
}

std::int64_t block_row_of(const BlockGrid& grid, std::int64_t row) {
  return (grid.first_row + row) / grid.block_rows;
}

/// An F32 number with the value of a BF16, F16 or F32 number that lies anywhere.
template <DType dtype>
float load_float(const std::byte* address) {
  if constexpr (dtype == DType::F32) {
    float number;
    std::memcpy(&number, address, sizeof number);
    return number;
  } else {
    std::uint16_t bits;
    std::memcpy(&bits, address, sizeof bits);
    return float_of_bits(dtype == DType::BF16 ? float_bits<bfloat16>(bits) : float_bits<float16>(bits));
  }
}

// --- magnitudes
// -------------------------------------------------------------------------------------------

std::uint32_t magnitude_bits(float value) { return bits_of_float(value) & 0x7FFFFFFF; }

/// What FindMagnitudes is to do. A NaN is the one with an otherwise empty payload.
template <DType dtype, bool leaves_out_nan>
void find_magnitudes_slowly(const void* source, std::int64_t first_length, std::int64_t length,
                            std::int64_t total, float* magnitudes) {
  constexpr std::uint32_t infinity = 0x7F800000;
  const auto* from = static_cast<const std::byte*>(source);
  for (std::int64_t begin = 0, end = std::min(first_length, total); begin < total; ++magnitudes) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::uint32_t bits = magnitude_bits(load_float<dtype>(from + i * bytes_of(dtype)));
      if (leaves_out_nan && bits > infinity) continue;
      *magnitudes = larger_magnitude(*magnitudes, float_of_bits(bits > infinity ? 0x7FC00000 : bits));
    }
    begin = end;
    end = std::min(end + length, total);
  }
}

template <bool leaves_out_nan>
constexpr MagnitudeRuns slow_magnitudes = {find_magnitudes_slowly<DType::BF16, leaves_out_nan>,
                                           find_magnitudes_slowly<DType::F16, leaves_out_nan>,
                                           find_magnitudes_slowly<DType::F32, leaves_out_nan>};

FindMagnitudes magnitudes_kernel(const InstructionSet& set, DType dtype, bool leaves_out_nan) {
  const MagnitudeRuns* runs = leaves_out_nan ? &set.magnitudes_without_nan : &set.magnitudes;
  if (runs->of_bf16 == nullptr) runs = leaves_out_nan ? &slow_magnitudes<true> : &slow_magnitudes<false>;
  return dtype == DType::BF16 ? runs->of_bf16 : dtype == DType::F16 ? runs->of_f16 : runs->of_f32;
}

// --- codes
// ------------------------------------------------------------------------------------------------

using EncodeOne = std::uint8_t (*)(const std::byte* value, float factor);

template <CodeRule rule, DType dtype>
std::uint8_t encode_one(const std::byte* value, float factor) {
  return code_of<rule>(load_float<dtype>(value), factor);
}

/// For each of code_rules those of BF16, F16 and F32.
constexpr auto encode_ones = []<std::size_t... index>(std::index_sequence<index...>) {
  return std::array<std::array<EncodeOne, 3>, sizeof...(index)>{
      {{encode_one<code_rules[index], DType::BF16>, encode_one<code_rules[index], DType::F16>,
        encode_one<code_rules[index], DType::F32>}...}};
}
(std::make_index_sequence<code_rules.size()>());

/// How values of a dtype become codes.
struct Encoder {
  bool is_packed;
  std::int64_t value_bytes;
  EncodeOne one;
  EncodeRun run;  ///< null where there is none
  std::int64_t shortest_run;
};

Encoder encoder_of(const InstructionSet& set, const CodeRule& rule, DType dtype) {
  const std::size_t index = index_of(rule);
  const EncodeRuns& runs = set.encode_by_rule.at(index);
  const std::size_t of_dtype = dtype == DType::BF16 ? 0 : dtype == DType::F16 ? 1 : 2;
  const EncodeRun run[] = {runs.from_bf16, runs.from_f16, runs.from_f32};
  return {is_packed(rule.element), bytes_of(dtype), encode_ones[index][of_dtype], run[of_dtype],
          set.shortest_run};
}

void set_low_nibble(std::uint8_t& byte, std::uint8_t code) {
  byte = static_cast<std::uint8_t>((byte & 0xF0) | code);
}

void set_high_nibble(std::uint8_t& byte, std::uint8_t code) {
  byte = static_cast<std::uint8_t>((byte & 0x0F) | code << 4);
}

/// Writes the codes of neighbouring values with a factor each, from an element of `codes` on.
void encode_values(const Encoder& encoder, const std::byte* values, const float* factors, std::int64_t count,
                   std::uint8_t* codes, std::int64_t element) {
  const auto code_at = [&](std::int64_t i) {
    return encoder.one(values + i * encoder.value_bytes, factors[i]);
  };
  const bool begins_in_high_nibble = encoder.is_packed && element % 2 != 0;
  if (begins_in_high_nibble) {
    set_high_nibble(codes[element / 2], code_at(0));
    values += encoder.value_bytes;
    ++factors;
    ++element;
    --count;
  }
  std::uint8_t* to = codes + (encoder.is_packed ? element / 2 : element);
  const std::int64_t whole = encoder.is_packed ? count / 2 * 2 : count;
  if (encoder.run != nullptr && whole >= encoder.shortest_run) {
    encoder.run(values, factors, whole, to);
  } else if (encoder.is_packed) {
    for (std::int64_t i = 0; i < whole; i += 2) {
      to[i / 2] = static_cast<std::uint8_t>(code_at(i) | code_at(i + 1) << 4);
    }
  } else {
    for (std::int64_t i = 0; i < whole; ++i) to[i] = code_at(i);
  }
  if (whole < count) set_low_nibble(to[whole / 2], code_at(whole));
}

/// Fills `spread`, up to `total`, with the first factor `first_length` times, the others `length` times each.
void spread_factors(const InstructionSet& set, const float* factors, std::int64_t first_length,
                    std::int64_t length, std::int64_t total, float* spread) {
  if (set.spread_floats != nullptr) return set.spread_floats(factors, first_length, length, total, spread);
  for (std::int64_t begin = 0, end = std::min(first_length, total); begin < total; ++factors) {
    std::fill(spread + begin, spread + end, *factors);
    begin = end;
    end = std::min(end + length, total);
  }
}

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
  for_each_line(set, values, [&](const Line& line) {
    const LineBlocks blocks = blocks_of(grid, line);
    const float* of_line = factors + block_row_of(grid, line.row) * row_stride + blocks.first;
    spread_factors(set, of_line, blocks.first_length, grid.block_columns, line.columns, spread);
    encode_values(encoder, line.values, spread, line.columns, codes,
                  line.row * to.row_stride + line.column + (to.begins_in_high_nibble ? 1 : 0));
  });
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
  return float_of_bits(std::max(magnitude_bits(a), magnitude_bits(b)));
}

void find_magnitudes(const ValueTile& values, const BlockGrid& grid, float* magnitudes,
                     std::int64_t row_stride, bool leaves_out_nan) {
  expect_encodable(values.dtype, "blocks");
  if (values.rows <= 0 || values.columns <= 0) return;
  const std::int64_t block_count = (grid.first_column + values.columns - 1) / grid.block_columns + 1;
  for (std::int64_t row = 0; row <= block_row_of(grid, values.rows - 1); ++row) {
    std::fill_n(magnitudes + row * row_stride, block_count, 0.0F);
  }
  const InstructionSet& set = instruction_set_in_use();
  const FindMagnitudes find = magnitudes_kernel(set, values.dtype, leaves_out_nan);
  for_each_line(set, values, [&](const Line& line) {
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
