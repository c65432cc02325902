#pragma once

// A random tile of values to encode, with what the scalar definition makes of it.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/encoded_tile.h"
#include "slow_definition.h"
#include "tiles.h"

namespace shardwright::cuda {

struct RandomEncoding {
  RandomDestination values;  ///< that memory is filled with values where the tile has some
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t first_column;
  std::vector<std::uint8_t> first;  ///< scales of blocks that are shared; empty: none are
  std::vector<std::uint8_t> last;
  std::int64_t row_stride;
  std::int64_t scale_row_stride;
  std::vector<std::uint8_t> elements;  ///< with something around them, like the next
  std::vector<std::uint8_t> scales;
  std::vector<std::uint8_t> expected_elements;
  std::vector<std::uint8_t> expected_scales;
  static constexpr std::int64_t guard = 128;

  RandomEncoding(Random& random, DType dtype, std::int64_t row_count, std::int64_t column_count,
                 Strides strides)
      : values(random, dtype, row_count, column_count, strides),
        rows(row_count),
        columns(column_count),
        first_column(random.chance(2) ? 0 : random.number(0, 31)) {
    // Any bits in one tile of four, numbers of all sizes around a power of two in the others.
    const bool any_bits = random.chance(4);
    const auto around =
        static_cast<int>(random.number(dtype == DType::F16 ? -20 : -140, dtype == DType::F16 ? 15 : 127));
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = 0; column < columns; ++column) {
        auto bits = static_cast<std::uint64_t>(random.number(0, 0xFFFFFFFF));
        if (!any_bits) {
          const auto mantissa = static_cast<long double>(random.number(1 << 20, 1 << 21));
          const long double value =
              std::ldexp(mantissa, around - 20 - static_cast<int>(random.number(0, 20)));
          bits = slow::rounded(dtype, random.chance(2) ? value : -value);
        }
        slow::store(values.tile.data, row * values.tile.row_stride + column * values.tile.column_stride,
                    dtype, bits);
      }
    }
    const std::int64_t blocks = (first_column + columns + 31) / 32;
    row_stride = columns + (random.chance(2) ? 0 : random.number(1, 40));
    scale_row_stride = blocks + random.number(0, 3);
    elements.assign(static_cast<std::size_t>(2 * guard + rows * row_stride + random.number(0, 15)), 0x55);
    scales.assign(static_cast<std::size_t>(2 * guard + rows * scale_row_stride), 0x55);
    for (std::vector<std::uint8_t>* shared : {&first, &last}) {
      if (!random.chance(3)) continue;
      *shared = random.bytes(rows);
      for (std::uint8_t& scale : *shared) scale = scale == 255 ? 254 : scale;
    }
    expected_elements = elements;
    expected_scales = scales;
    use_instruction_set("scalar");
    shardwright::encode(value_tile(), first_column, shared(), encoded(expected_elements, expected_scales));
    use_instruction_set("");
  }

  ValueTile value_tile() const {
    return {values.tile.data, values.tile.dtype,      rows,
            columns,          values.tile.row_stride, values.tile.column_stride};
  }
  SharedScales shared() const {
    return {first.empty() ? nullptr : first.data(), last.empty() ? nullptr : last.data()};
  }
  EncodedTile encoded(std::vector<std::uint8_t>& elements_to, std::vector<std::uint8_t>& scales_to) const {
    return {elements_to.data() + guard, row_stride, scales_to.data() + guard, scale_row_stride};
  }
  TileToEncode encoding() { return {value_tile(), first_column, shared(), encoded(elements, scales)}; }

  std::string describe() const {
    return std::to_string(rows) + " x " + std::to_string(columns) + " " +
           std::string(name_of(values.tile.dtype)) + " (strides " + std::to_string(values.tile.row_stride) +
           ", " + std::to_string(values.tile.column_stride) + ") from column " +
           std::to_string(first_column) + " of a block";
  }
};

inline const std::vector<DType> encodable = {DType::BF16, DType::F16, DType::F32};

}  // namespace shardwright::cuda
