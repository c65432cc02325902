#pragma once

// Internal: what placing and decoding share. Tiles are taken apart into runs: rows as they are, or, for
// transposed destinations, the rows of transposed panels.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/decode.h"
#include "kernels/instruction_sets.h"

namespace shardwright {

/// A panel is what is transposed at once: a few cache lines of each of many rows. It stays in the first-level
/// cache, and each destination row gets its elements of a panel as one run of whole cache lines.
struct PanelShape {
  std::int64_t rows;
  std::int64_t row_bytes;
  bool is_fetched_ahead;
};

/// Of a tile that lies in a cache: long runs are written.
inline constexpr PanelShape panel_from_cache = {256, 64, false};

/// Of one that comes from memory: long runs are read as well, and the next while one is written.
inline constexpr PanelShape panel_from_memory = {128, 128, true};

inline constexpr std::int64_t most_panel_rows = std::max(panel_from_cache.rows, panel_from_memory.rows);
inline constexpr std::int64_t most_panel_row_bytes =
    std::max(panel_from_cache.row_bytes, panel_from_memory.row_bytes);

/// Less than a core's second-level cache.
inline constexpr std::int64_t most_bytes_in_cache = std::int64_t{3} << 19;

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

inline PanelShape panel_shape_of(const SourceTile& source) {
  const std::int64_t bytes = source.rows * source.columns * bits_of(source.dtype) / 8;
  return bytes <= most_bytes_in_cache ? panel_from_cache : panel_from_memory;
}

/// How many rows the panel at `row` takes: up to `most`, ending with a cache line of the destination if
/// its rows are aligned alike, and leaving no rest that would be too short for a run.
inline std::int64_t rows_of_panel(const SourceTile& source, const DestinationTile& destination,
                                  std::int64_t row, std::int64_t shortest_run, std::int64_t most) {
  const std::int64_t size = bytes_of(destination.dtype);
  const std::int64_t rest = source.rows - row;
  if (rest <= most) return rest;
  if (rest < most + shortest_run) return most / 2;
  const auto address = reinterpret_cast<std::uintptr_t>(element(destination, row, 0));
  return most - static_cast<std::int64_t>(address % 64) / size;
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

/// What the next panel is made of. Its rows lie too far apart for the processor to fetch them by itself.
struct LinesAhead {
  const std::byte* first = nullptr;
  std::int64_t stride = 0;  ///< bytes
  std::int64_t rows = 0;
  std::int64_t bytes = 0;  ///< of each

  /// Begins to fetch one of `parts` parts of the rows. Inline, as gcc takes a function that only fetches for
  /// one that does nothing, and leaves its calls out.
  [[gnu::always_inline]] void fetch(std::int64_t part, std::int64_t parts) const {
    for (std::int64_t row = part; row < rows; row += parts) {
      const std::byte* line = first + row * stride;
      for (std::int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(line + at);
      __builtin_prefetch(line + bytes - 1);  // where a row does not begin with a cache line
    }
  }
};

/// The lines of a tile whose elements have bytes of their own.
struct LinesInPlace {
  const SourceTile& source;
  std::int64_t element_bytes() const { return bytes_of(source.dtype); }
  Lines operator()(std::int64_t row, std::int64_t /*rows*/, std::int64_t column,
                   std::int64_t /*columns*/) const {
    return {element(source, row, column), source.row_stride * bytes_of(source.dtype)};
  }
  LinesAhead ahead(std::int64_t row, std::int64_t column, std::int64_t row_bytes) const {
    return {element(source, row, column), source.row_stride * bytes_of(source.dtype), source.rows - row,
            row_bytes};
  }
};

/// Calls use(panel, pitch in elements, row, rows, column, columns, ahead) for each transposed panel of the
/// tile, whose elements are lines(row, rows, column, columns). Goes down all rows before it goes right, so
/// that few rows (pages) of the destination are written at a time. `use` fetches what is ahead in as
/// many parts as there are columns, between what it writes.
template <class LinesOf, class Use>
void for_each_panel(const InstructionSet& set, const SourceTile& source, const LinesOf& lines_of,
                    const DestinationTile& destination, Use use) {
  constexpr std::int64_t panel_bytes =
      std::max(panel_from_cache.row_bytes * (panel_from_cache.rows + panel_padding_bytes),
               panel_from_memory.row_bytes * (panel_from_memory.rows + panel_padding_bytes));
  alignas(64) std::byte panel[static_cast<std::size_t>(panel_bytes)];
  const PanelShape shape = panel_shape_of(source);
  const std::int64_t size = lines_of.element_bytes();
  const std::int64_t pitch = shape.rows + panel_padding_bytes / size;
  const std::int64_t panel_columns = shape.row_bytes / size;
  const TransposePanel transpose = transpose_kernel(set, size);
  for (std::int64_t column = 0; column < source.columns; column += panel_columns) {
    const std::int64_t columns = std::min(panel_columns, source.columns - column);
    for (std::int64_t row = 0, rows = 0; row < source.rows; row += rows) {
      rows = rows_of_panel(source, destination, row, set.shortest_run, shape.rows);
      const Lines lines = lines_of(row, rows, column, columns);
      transpose(lines.first, lines.stride / size, rows, columns, panel, pitch);
      LinesAhead ahead;
      if (shape.is_fetched_ahead) {
        const bool is_last = row + rows == source.rows;
        const std::int64_t row_ahead = is_last ? 0 : row + rows;
        const std::int64_t column_ahead = is_last ? column + panel_columns : column;
        if (column_ahead < source.columns) ahead = lines_of.ahead(row_ahead, column_ahead, shape.row_bytes);
        ahead.rows = std::min(ahead.rows, shape.rows);
      }
      use(panel, pitch, row, rows, column, columns, ahead);
    }
  }
}

}  // namespace shardwright
