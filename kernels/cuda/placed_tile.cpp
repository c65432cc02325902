#include "kernels/cuda/placed_tile.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/scaled_element.h"

namespace shardwright::cuda {
namespace {

constexpr std::int64_t most_blocks = std::numeric_limits<std::int32_t>::max();

void expect_possible(const Placing& placing) {
  const DType from = placing.source.dtype;
  const DType to = placing.destination.dtype;
  if (placing.scales.data == nullptr) {
    if (can_convert(from, to)) return;
    throw std::invalid_argument("cannot convert " + std::string(name_of(from)) + " elements to " +
                                std::string(name_of(to)));
  }
  expect_decodable(from, placing.scales);
  if (is_wide_float(to)) return;
  throw std::invalid_argument("cannot decode " + std::string(name_of(from)) + " elements with scales of " +
                              std::string(name_of(placing.scales.dtype)) + " to " + std::string(name_of(to)));
}

/// A packed format as the bytes that it consists of.
Placing in_bytes(Placing placing) {
  SourceTile& source = placing.source;
  DestinationTile& destination = placing.destination;
  const int bits = bits_of(source.dtype);
  if (bits % 8 == 0 || placing.scales.data != nullptr) return placing;
  if (source.begins_in_high_nibble || destination.column_stride != 1 || source.columns * bits % 8 != 0 ||
      source.row_stride * bits % 8 != 0 || destination.row_stride * bits % 8 != 0) {
    throw std::invalid_argument(
        "cannot place " + std::string(name_of(source.dtype)) +
        " elements that share a byte with elements outside the tile, or transpose them");
  }
  source.columns = source.columns * bits / 8;
  source.row_stride = source.row_stride * bits / 8;
  destination.row_stride = destination.row_stride * bits / 8;
  source.dtype = destination.dtype = DType::U8;
  return placing;
}

ScaleSteps steps_of(std::int64_t block, std::int64_t first) {
  // A block that reaches beyond the tile may as well end with it: all its indices are in block 0.
  const auto size = static_cast<std::uint32_t>(std::min(block, 2 * longest_side));
  return {size, static_cast<std::uint32_t>(first), std::has_single_bit(size) ? std::countr_zero(size) : -1};
}

/// The part of a placing from (row, column) on.
PlacedTile part_of(const Placing& placing, std::int64_t row, std::int64_t rows, std::int64_t column,
                   std::int64_t columns) {
  const auto& [source, scales, destination] = placing;
  const std::int64_t source_bits = bits_of(source.dtype);
  const std::int64_t destination_bytes = bytes_of(destination.dtype);
  PlacedTile tile;
  const std::int64_t nibble = source.begins_in_high_nibble ? 4 : 0;
  const std::int64_t first_bit = (row * source.row_stride + column) * source_bits + nibble;
  tile.source = static_cast<const std::byte*>(source.data) + first_bit / 8;
  tile.begins_in_high_nibble = first_bit % 8 != 0;
  tile.destination = static_cast<std::byte*>(destination.data) +
                     (row * destination.row_stride + column * destination.column_stride) * destination_bytes;
  tile.source_row_stride = source.row_stride * source_bits / 8;
  tile.row_stride = destination.row_stride * destination_bytes;
  tile.column_stride = destination.column_stride * destination_bytes;
  tile.rows = static_cast<std::uint32_t>(rows);
  tile.columns = static_cast<std::uint32_t>(columns);
  tile.source_bytes = static_cast<std::uint32_t>(source_bits / 8);
  tile.source_dtype = source.dtype;
  tile.destination_dtype = destination.dtype;
  tile.by_definition =
      source.dtype != destination.dtype && (source.dtype == DType::F64 || destination.dtype == DType::F64);
  if (scales.data == nullptr) return tile;

  const std::int64_t from_first_row = scales.first_row + row;
  const std::int64_t from_first_column = scales.first_column + column;
  const std::int64_t first_scale =
      from_first_row / scales.block_rows * scales.row_stride + from_first_column / scales.block_columns;
  tile.scales = static_cast<const std::byte*>(scales.data) + first_scale * bytes_of(scales.dtype);
  tile.scale_dtype = scales.dtype;
  const Scaling scaling = scaling_of(source.dtype, scales, std::bit_cast<std::uint32_t>(scales.global));
  tile.product = scaling.product;
  tile.code_eight_is_plus_zero = scaling.code_eight_is_plus_zero;
  tile.global_bits = scaling.global_bits;
  const bool is_fp8 = source.dtype == DType::F8_E4M3 || source.dtype == DType::F8_E5M2;
  const bool is_e8m0 = scales.dtype == DType::U8 || scales.dtype == DType::F8_E8M0;
  if (!is_fp8 || scales.dtype == DType::F16 || is_e8m0 != (scales.product == Product::exact_once)) {
    tile.by_definition = true;
  }
  tile.scale_row_stride = scales.row_stride;
  tile.scale_rows = steps_of(scales.block_rows, from_first_row % scales.block_rows);
  tile.scale_columns = steps_of(scales.block_columns, from_first_column % scales.block_columns);
  return tile;
}

std::int64_t pieces(std::int64_t whole, std::int64_t piece) { return (whole + piece - 1) / piece; }

/// Rows that a block of the straight kernel takes.
std::int64_t rows_of_block(std::int64_t chunks_across) {
  return threads_in_block / chunks_across * rows_of_thread;
}

/// How many chunks lie beside each other in a block: at least a warp's where rows are that long, and as
/// leaves the fewest threads without one.
std::uint32_t chunks_across_of(std::int64_t rows, std::int64_t columns) {
  const std::int64_t chunks = pieces(columns, chunk_elements);
  if (chunks < 32) return std::bit_ceil(static_cast<std::uint32_t>(chunks));
  const auto room = [&](std::int64_t across) {
    return pieces(chunks, across) * across * pieces(rows, rows_of_block(across)) * rows_of_block(across);
  };
  std::uint32_t best = 32;
  for (std::uint32_t across = 64; across <= threads_in_block; across *= 2) {
    if (room(across) <= room(best)) best = across;
  }
  return best;
}

Layout layout_of(const PlacedTile& tile) {
  const bool rows_are_closer = std::abs(tile.row_stride) < std::abs(tile.column_stride);
  return rows_are_closer && tile.rows > 1 && tile.columns > 1 ? Layout::transposed : Layout::straight;
}

/// Fills in how the tile is divided among blocks; returns how many it takes.
std::int64_t divide(PlacedTile& tile, Layout layout) {
  std::int64_t columns = square;
  std::int64_t rows = square;
  if (layout == Layout::straight) {
    tile.chunks_across = chunks_across_of(tile.rows, tile.columns);
    columns = std::int64_t{tile.chunks_across} * chunk_elements;
    rows = rows_of_block(tile.chunks_across);
  }
  tile.blocks_across = static_cast<std::uint32_t>(pieces(tile.columns, columns));
  return tile.blocks_across * pieces(tile.rows, rows);
}

/// Collects launches, one that is still open for each layout and size of elements.
class Launches {
 public:
  void add(PlacedTile tile) {
    const Layout layout = layout_of(tile);
    const int element_bytes = bytes_of(tile.destination_dtype);
    const std::int64_t blocks = divide(tile, layout);
    Launch& launch = open(layout, element_bytes, blocks);
    tile.first_block = launch.blocks;
    launch.blocks += static_cast<std::uint32_t>(blocks);
    launch.batch.tiles[launch.batch.count++] = tile;
  }
  std::vector<Launch> take() { return std::move(launches_); }

 private:
  Launch& open(Layout layout, int element_bytes, std::int64_t blocks) {
    // Those that are full lie further in front.
    const auto last = std::find_if(launches_.rbegin(), launches_.rend(), [&](const Launch& launch) {
      return launch.layout == layout && launch.element_bytes == element_bytes;
    });
    if (last != launches_.rend() && last->batch.count < most_tiles && last->blocks + blocks <= most_blocks) {
      return *last;
    }
    Launch& launch = launches_.emplace_back();
    launch.layout = layout;
    launch.element_bytes = element_bytes;
    if (layout == Layout::transposed) {
      launch.shared_bytes = square_bytes(static_cast<std::uint32_t>(element_bytes));
    }
    return launch;
  }

  std::vector<Launch> launches_;
};

}  // namespace

std::vector<Launch> launches_for(std::span<const Placing> placings, std::int64_t longest) {
  Launches launches;
  for (const Placing& given : placings) {
    expect_possible(given);
    const Placing placing = in_bytes(given);
    for (std::int64_t row = 0; row < placing.source.rows; row += longest) {
      const std::int64_t rows = std::min(longest, placing.source.rows - row);
      for (std::int64_t column = 0; column < placing.source.columns; column += longest) {
        const std::int64_t columns = std::min(longest, placing.source.columns - column);
        launches.add(part_of(placing, row, rows, column, columns));
      }
    }
  }
  return launches.take();
}

}  // namespace shardwright::cuda
