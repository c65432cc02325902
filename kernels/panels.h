#pragma once

// Internal: what placing and decoding share. Tiles are taken apart into runs: rows as they are, or, for
// transposed destinations, the rows of transposed panels.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/decode.h"
#include "kernels/instruction_sets.h"

namespace shardwright {

// A panel is what is transposed at once: one cache line of each of these many rows. It stays in the
// first-level cache, and each destination row gets its elements of a panel as one run of whole cache lines.
inline constexpr std::int64_t panel_rows = 256;
inline constexpr std::int64_t panel_row_bytes = 64;

// Between rows of a transposed panel, so that they do not all fall into the same few sets of the cache.
inline constexpr std::int64_t panel_padding_bytes = 64;

// Past the caches only what would push more useful things out of them.
inline constexpr std::int64_t least_streamed_bytes = 64 * 1024;

inline const std::byte* element(const SourceTile& tile, std::int64_t row, std::int64_t column) {
  return static_cast<const std::byte*>(tile.data) + (row * tile.row_stride + column) * bytes_of(tile.dtype);
}

inline std::byte* element(const DestinationTile& tile, std::int64_t row, std::int64_t column) {
  return static_cast<std::byte*>(tile.data) +
         (row * tile.row_stride + column * tile.column_stride) * bytes_of(tile.dtype);
}

inline bool is_straight(const DestinationTile& tile) { return tile.column_stride == 1; }
inline bool is_transposed(const DestinationTile& tile) { return tile.row_stride == 1; }

/// Ordinary or streaming stores for a tile; ends the streaming when it goes.
struct Stores {
  const InstructionSet& set;
  Store kind;

  Stores(const InstructionSet& instruction_set, const SourceTile& source, const DestinationTile& destination)
      : set(instruction_set),
        kind(source.rows * source.columns * bytes_of(destination.dtype) >= least_streamed_bytes
                 ? Store::streaming
                 : Store::cached) {}
  Stores(const Stores&) = delete;
  Stores& operator=(const Stores&) = delete;
  ~Stores() {
    if (kind == Store::streaming) set.finish_streaming();
  }
};

/// How many rows the panel at `row` takes: up to the limit, ending with a cache line of the destination if
/// its rows are aligned alike, and leaving no rest that would be too short for a run.
inline std::int64_t rows_of_panel(const SourceTile& source, const DestinationTile& destination,
                                  std::int64_t row, std::int64_t shortest_run) {
  const std::int64_t size = bytes_of(destination.dtype);
  const std::int64_t rest = source.rows - row;
  if (rest <= panel_rows) return rest;
  if (rest < panel_rows + shortest_run) return panel_rows / 2;
  const auto address = reinterpret_cast<std::uintptr_t>(element(destination, row, 0));
  return panel_rows - static_cast<std::int64_t>(address % 64) / size;
}

inline TransposePanel transpose_kernel(const InstructionSet& set, std::int64_t element_bytes) {
  switch (element_bytes) {
    case 1:
      return set.transpose_1_byte;
    case 2:
      return set.transpose_2_bytes;
    case 4:
      return set.transpose_4_bytes;
    default:
      return set.transpose_8_bytes;
  }
}

/// Rows of elements that lie next to each other, `stride` bytes from one to the next.
struct Lines {
  const std::byte* first = nullptr;
  std::int64_t stride = 0;
};

/// The lines of a tile whose elements have bytes of their own.
struct LinesInPlace {
  const SourceTile& source;
  std::int64_t element_bytes() const { return bytes_of(source.dtype); }
  Lines operator()(std::int64_t row, std::int64_t /*rows*/, std::int64_t column,
                   std::int64_t /*columns*/) const {
    return {element(source, row, column), source.row_stride * bytes_of(source.dtype)};
  }
};

/// Calls use(panel, pitch in elements, row, rows, column, columns) for each transposed panel of the tile,
/// whose elements are lines(row, rows, column, columns). Goes down all rows before it goes right, so that few
/// rows (pages) of the destination are written at a time.
template <class LinesOf, class Use>
void for_each_panel(const InstructionSet& set, const SourceTile& source, const LinesOf& lines_of,
                    const DestinationTile& destination, Use use) {
  alignas(64) std::byte panel[static_cast<std::size_t>(panel_row_bytes * (panel_rows + panel_padding_bytes))];
  const std::int64_t size = lines_of.element_bytes();
  const std::int64_t pitch = panel_rows + panel_padding_bytes / size;
  const std::int64_t panel_columns = panel_row_bytes / size;
  const TransposePanel transpose = transpose_kernel(set, size);
  for (std::int64_t column = 0; column < source.columns; column += panel_columns) {
    const std::int64_t columns = std::min(panel_columns, source.columns - column);
    for (std::int64_t row = 0, rows = 0; row < source.rows; row += rows) {
      rows = rows_of_panel(source, destination, row, set.shortest_run);
      const Lines lines = lines_of(row, rows, column, columns);
      transpose(lines.first, lines.stride / size, rows, columns, panel, pitch);
      use(panel, pitch, row, rows, column, columns);
    }
  }
}

}  // namespace shardwright
