#pragma once

// Internal: the values of a tile as the encoders take them, in lines that lie next to each other.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/encode.h"
#include "kernels/instruction_sets.h"

namespace shardwright {

// Factors are spread, one for each value, over so many columns of a row at a time.
inline constexpr std::int64_t line_columns = 2048;

// What is regrouped at once if the columns of a row are not neighbours: a cache line of each of so many
// columns. It stays in the first-level cache.
inline constexpr std::int64_t line_panel_bytes = 64;
inline constexpr std::int64_t line_panel_columns = 256;

// Between rows of such a panel, so that they do not all fall into the same few sets of the cache.
inline constexpr std::int64_t line_padding_bytes = 64;

/// Values of a row of a tile, from a column on, next to each other.
struct Line {
  const std::byte* values;
  std::int64_t row;
  std::int64_t column;
  std::int64_t columns;
};

inline const std::byte* value_at(const ValueTile& tile, std::int64_t row, std::int64_t column) {
  return static_cast<const std::byte*>(tile.data) +
         (row * tile.row_stride + column * tile.column_stride) * bytes_of(tile.dtype);
}

/// Writes rows x columns of a tile to a panel, row behind row, `pitch` values from one to the next.
void fill_line_panel(const InstructionSet& set, const ValueTile& values, std::int64_t row, std::int64_t rows,
                     std::int64_t column, std::int64_t columns, std::byte* panel, std::int64_t pitch);

/// How many columns are taken from a column on: `most`, or fewer so that no block is cut that the tile does
/// not cut. Blocks that are no part of `most` are cut.
inline std::int64_t columns_from(const ValueTile& values, const BlockGrid& grid, std::int64_t column,
                                 std::int64_t most) {
  const std::int64_t in_block =
      most % grid.block_columns == 0 ? (grid.first_column + column) % grid.block_columns : 0;
  return std::min(most - in_block, values.columns - column);
}

/// Calls use(line) for lines that make up the tile.
template <class Use>
void for_each_line(const InstructionSet& set, const ValueTile& values, const BlockGrid& grid, Use use) {
  if (values.column_stride == 1 || values.columns == 1) {
    for (std::int64_t row = 0; row < values.rows; ++row) {
      for (std::int64_t column = 0, columns = 0; column < values.columns; column += columns) {
        columns = columns_from(values, grid, column, line_columns);
        use(Line{value_at(values, row, column), row, column, columns});
      }
    }
    return;
  }
  const std::int64_t size = bytes_of(values.dtype);
  const std::int64_t most_rows = line_panel_bytes / size;
  const std::int64_t pitch = line_panel_columns + line_padding_bytes / size;
  alignas(64) std::byte panel[line_panel_bytes * (line_panel_columns + line_padding_bytes)];
  for (std::int64_t column = 0, columns = 0; column < values.columns; column += columns) {
    columns = columns_from(values, grid, column, line_panel_columns);
    for (std::int64_t row = 0; row < values.rows; row += most_rows) {
      const std::int64_t rows = std::min(most_rows, values.rows - row);
      fill_line_panel(set, values, row, rows, column, columns, panel, pitch);
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

inline LineBlocks blocks_of(const BlockGrid& grid, const Line& line) {
  const std::int64_t begin = grid.first_column + line.column;
  const std::int64_t first = begin / grid.block_columns;
  return {first, (begin + line.columns - 1) / grid.block_columns + 1 - first,
          (first + 1) * grid.block_columns - begin};
}

inline std::int64_t block_row_of(const BlockGrid& grid, std::int64_t row) {
  return (grid.first_row + row) / grid.block_rows;
}

}  // namespace shardwright
