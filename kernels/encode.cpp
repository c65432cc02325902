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

/// Calls use(instruction set, line, its blocks, a scale for each of them) for lines that make up the tile, in
/// the default floating-point mode. No block is cut that the tile does not cut.
template <class Use>
void for_each_scaled_line(const ValueTile& values, std::int64_t first_column, Use use) {
  expect_encodable(values.dtype);
  if (values.rows <= 0 || values.columns <= 0) return;
  const DefaultFloatingPointMode mode;
  const InstructionSet& set = instruction_set_in_use();
  const FindMagnitudes find = magnitudes_kernel(set, values.dtype, true);
  const BlockGrid grid{1, mxfp8_block_columns, 0, first_column};
  std::array<float, most_blocks> magnitudes;
  std::array<std::uint8_t, most_blocks> scales;
  for_each_line(set, values, grid, [&](const Line& line) {
    const LineBlocks blocks = blocks_of(grid, line);
    std::fill_n(magnitudes.begin(), blocks.count, 0.0F);
    find(line.values, blocks.first_length, mxfp8_block_columns, line.columns, magnitudes.data());
    for (std::size_t i = 0; i < static_cast<std::size_t>(blocks.count); ++i) {
      scales[i] = smallest_scale_of_float(bits_of_float(magnitudes[i]));
    }
    use(set, line, blocks, scales.data());
  });
}

}  // namespace

bool can_encode(DType dtype) { return dtype == DType::BF16 || dtype == DType::F16 || dtype == DType::F32; }

void encode(const ValueTile& values, std::int64_t first_column, const SharedScales& shared,
            const EncodedTile& to) {
  expect_encodable(values.dtype);
  const std::int64_t last_block = (first_column + values.columns - 1) / mxfp8_block_columns;
  const Encoder encoder = encoder_of(instruction_set_in_use(), products, values.dtype);
  std::array<float, most_blocks> factors;
  alignas(64) std::array<float, line_columns + most_spread_beyond> spread;
  for_each_scaled_line(
      values, first_column,
      [&](const InstructionSet& set, const Line& line, const LineBlocks& blocks, std::uint8_t* scales) {
        const std::int64_t end = blocks.first + blocks.count;
        if (shared.last != nullptr && end == last_block + 1) scales[blocks.count - 1] = shared.last[line.row];
        if (shared.first != nullptr && blocks.first == 0) scales[0] = shared.first[line.row];
        std::copy_n(scales, blocks.count, to.scales + line.row * to.scale_row_stride + blocks.first);
        for (std::size_t i = 0; i < static_cast<std::size_t>(blocks.count); ++i) {
          factors[i] = float_of_bits(float_bits_of_e8m0(static_cast<std::uint8_t>(254 - scales[i])));
        }
        spread_factors(set, factors.data(), blocks.first_length, mxfp8_block_columns, line.columns,
                       spread.data());
        encode_values(encoder, line.values, spread.data(), line.columns, to.elements,
                      line.row * to.row_stride + line.column);
      });
}

void find_scales(const ValueTile& values, std::int64_t first_column, std::uint8_t* scales,
                 std::int64_t scale_row_stride) {
  for_each_scaled_line(values, first_column,
                       [&](const InstructionSet& /*set*/, const Line& line, const LineBlocks& blocks,
                           const std::uint8_t* of_line) {
                         std::copy_n(of_line, blocks.count,
                                     scales + line.row * scale_row_stride + blocks.first);
                       });
}

}  // namespace shardwright
