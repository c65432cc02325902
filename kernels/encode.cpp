#include "kernels/encode.h"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <string>

#include "kernels/encode_runs.h"
#include "kernels/float_arithmetic.h"
#include "kernels/floating_point_mode.h"
#include "kernels/value_lines.h"

namespace shardwright {
namespace {

constexpr CodeRule products = {DType::F8_E4M3, Change::multiply};
constexpr std::int64_t most_blocks = line_columns / mxfp8_block_columns + 1;

void expect_encodable(DType dtype) {
  if (can_encode(dtype)) return;
  throw std::invalid_argument("cannot encode " + std::string(name_of(dtype)) +
                              " elements as MXFP8; expected BF16, F16 or F32");
}

/// Blocks that go the plain way at once where the kernel of whole blocks stops.
constexpr std::int64_t plain_blocks = 8;

constexpr BlockGrid grid_from(std::int64_t first_column) { return {1, mxfp8_block_columns, 0, first_column}; }

/// Finds the scales of a line's blocks.
void find_scales_of(FindMagnitudes find, const Line& line, const LineBlocks& blocks, std::uint8_t* scales) {
  std::array<float, most_blocks> magnitudes;
  std::fill_n(magnitudes.begin(), blocks.count, 0.0F);
  find(line.values, blocks.first_length, mxfp8_block_columns, line.columns, magnitudes.data());
  for (std::size_t i = 0; i < static_cast<std::size_t>(blocks.count); ++i)
    scales[i] = smallest_scale_of_float(bits_of_float(magnitudes[i]));
}

/// Calls use(instruction set, line, its blocks) for lines that make up the tile, in the default
/// floating-point mode. No block is cut that the tile does not cut.
template <class Use>
void for_each_line_of_blocks(const ValueTile& values, std::int64_t first_column, Use use) {
  expect_encodable(values.dtype);
  if (values.rows <= 0 || values.columns <= 0) return;
  const DefaultFloatingPointMode mode;
  const InstructionSet& set = instruction_set_in_use();
  const BlockGrid grid = grid_from(first_column);
  for_each_line(set, values, grid, [&](const Line& line) { use(set, line, blocks_of(grid, line)); });
}

/// Calls use(line) for what is left of a line, in parts, once the kernel of whole blocks has encoded what it
/// can.
template <class Use>
void encode_whole_blocks(EncodeBlocks encode_blocks, const Line& line, const LineBlocks& blocks,
                         const EncodedTile& to, Use use) {
  const std::int64_t whole = line.columns / mxfp8_block_columns;
  const std::int64_t size = bytes_of(DType::BF16);
  for (std::int64_t done = 0, column = 0; column < line.columns;) {
    done += encode_blocks(line.values + column * size, whole - done,
                          to.elements + line.row * to.row_stride + line.column + column,
                          to.scales + line.row * to.scale_row_stride + blocks.first + done);
    column = done * mxfp8_block_columns;
    const std::int64_t columns = std::min(plain_blocks * mxfp8_block_columns, line.columns - column);
    if (columns == 0) return;
    use(Line{line.values + column * size, line.row, line.column + column, columns});
    done = std::min(done + plain_blocks, whole);
    column += columns;
  }
}

/// Encodes a tile's lines, whatever their blocks are.
void encode_lines(const ValueTile& values, std::int64_t first_column, const SharedScales& shared,
                  const EncodedTile& to) {
  const std::int64_t last_block = (first_column + values.columns - 1) / mxfp8_block_columns;
  const Encoder encoder = encoder_of(instruction_set_in_use(), products, values.dtype);
  const FindMagnitudes find = magnitudes_kernel(instruction_set_in_use(), values.dtype, true);
  const BlockGrid grid = grid_from(first_column);
  std::array<std::uint8_t, most_blocks> scales;
  std::array<float, most_blocks> factors;
  alignas(64) std::array<float, line_columns + most_spread_beyond> spread;
  const auto encode_line = [&](const InstructionSet& set, const Line& line, const LineBlocks& blocks) {
    find_scales_of(find, line, blocks, scales.data());
    const std::int64_t end = blocks.first + blocks.count;
    if (shared.last != nullptr && end == last_block + 1) scales[blocks.count - 1] = shared.last[line.row];
    if (shared.first != nullptr && blocks.first == 0) scales[0] = shared.first[line.row];
    std::copy_n(scales.begin(), blocks.count, to.scales + line.row * to.scale_row_stride + blocks.first);
    for (std::size_t i = 0; i < static_cast<std::size_t>(blocks.count); ++i) {
      factors[i] = float_of_bits(float_bits_of_e8m0(static_cast<std::uint8_t>(254 - scales[i])));
    }
    spread_factors(set, factors.data(), blocks.first_length, mxfp8_block_columns, line.columns,
                   spread.data());
    encode_values(encoder, line.values, spread.data(), line.columns, to.elements,
                  line.row * to.row_stride + line.column);
  };
  for_each_line_of_blocks(
      values, first_column, [&](const InstructionSet& set, const Line& line, const LineBlocks& blocks) {
        const bool has_shared = (shared.first != nullptr && blocks.first == 0) ||
                                (shared.last != nullptr && blocks.first + blocks.count == last_block + 1);
        if (set.encode_mxfp8_blocks == nullptr || values.dtype != DType::BF16 || has_shared ||
            blocks.first_length != mxfp8_block_columns)
          return encode_line(set, line, blocks);
        encode_whole_blocks(set.encode_mxfp8_blocks, line, blocks, to,
                            [&](const Line& part) { encode_line(set, part, blocks_of(grid, part)); });
      });
}

/// Columns of a tile, of rows that lie side by side.
struct Columns {
  std::int64_t begin;
  std::int64_t end;
};

/// The part of a tile that encode_lines() is given.
void encode_part(const ValueTile& values, std::int64_t first_column, const EncodedTile& to, std::int64_t row,
                 std::int64_t rows, Columns columns, const SharedScales& shared) {
  if (columns.begin == columns.end) return;
  const std::int64_t block = (first_column + columns.begin) / mxfp8_block_columns;
  encode_lines({value_at(values, row, columns.begin), values.dtype, rows, columns.end - columns.begin,
                values.row_stride, values.column_stride},
               (first_column + columns.begin) % mxfp8_block_columns, shared,
               {to.elements + row * to.row_stride + columns.begin, to.row_stride,
                to.scales + row * to.scale_row_stride + block, to.scale_row_stride});
}

/// Encodes a tile whose rows lie side by side: all rows of a block column, whose values are neighbours, then
/// of the next. What is written stays in the second-level cache until its lines are whole.
void encode_upright(EncodeUpright encode_blocks, const ValueTile& values, std::int64_t first_column,
                    const SharedScales& shared, const EncodedTile& to) {
  constexpr std::int64_t length = mxfp8_block_columns;
  std::int64_t first_whole = (length - first_column) % length;
  if (shared.first != nullptr && first_whole == 0) first_whole = length;
  first_whole = std::min(first_whole, values.columns);
  std::int64_t end_of_whole = values.columns - (values.columns - first_whole) % length;
  if (shared.last != nullptr && end_of_whole == values.columns)
    end_of_whole = std::max(first_whole, end_of_whole - length);
  const auto plainly = [&](std::int64_t row, std::int64_t rows, Columns columns) {
    const bool is_first = columns.begin == 0;
    const bool is_last = columns.end == values.columns;
    encode_part(values, first_column, to, row, rows, columns,
                {is_first ? shared.first : nullptr, is_last ? shared.last : nullptr});
  };
  plainly(0, values.rows, {0, first_whole});
  if (values.rows < upright_rows) {
    plainly(0, values.rows, {first_whole, end_of_whole});
  } else {
    for (std::int64_t column = first_whole; column < end_of_whole; column += length) {
      const std::int64_t block = (first_column + column) / length;
      for (std::int64_t begin = 0, rows = 0; begin < values.rows; begin += rows) {
        const std::int64_t rest = std::max(values.rows - begin, upright_rows);
        rows = std::min(most_upright_rows, rest - rest % upright_rows);
        const std::int64_t row = std::min(begin, values.rows - rows);  // the last may be encoded twice
        const std::int64_t next = row + rows;
        const bool is_done = encode_blocks(
            value_at(values, row, column), values.column_stride, rows,
            next < values.rows ? value_at(values, next, column) : value_at(values, 0, column + length),
            to.elements + row * to.row_stride + column, to.row_stride,
            to.scales + row * to.scale_row_stride + block, to.scale_row_stride);
        if (!is_done) plainly(row, rows, {column, column + length});
      }
    }
  }
  plainly(0, values.rows, {end_of_whole, values.columns});
}

}  // namespace

bool can_encode(DType dtype) { return dtype == DType::BF16 || dtype == DType::F16 || dtype == DType::F32; }

void encode(const ValueTile& values, std::int64_t first_column, const SharedScales& shared,
            const EncodedTile& to) {
  expect_encodable(values.dtype);
  const InstructionSet& set = instruction_set_in_use();
  const bool is_upright = values.row_stride == 1 && values.column_stride != 1;
  if (set.encode_mxfp8_upright != nullptr && values.dtype == DType::BF16 && is_upright)
    return encode_upright(set.encode_mxfp8_upright, values, first_column, shared, to);
  encode_lines(values, first_column, shared, to);
}

void find_scales(const ValueTile& values, std::int64_t first_column, std::uint8_t* scales,
                 std::int64_t scale_row_stride) {
  const FindMagnitudes find = magnitudes_kernel(instruction_set_in_use(), values.dtype, true);
  for_each_line_of_blocks(
      values, first_column, [&](const InstructionSet& /*set*/, const Line& line, const LineBlocks& blocks) {
        find_scales_of(find, line, blocks, scales + line.row * scale_row_stride + blocks.first);
      });
}

}  // namespace shardwright
