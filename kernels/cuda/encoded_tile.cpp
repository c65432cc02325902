#include "kernels/cuda/encoded_tile.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>

#include "kernels/cuda/encode_bodies.h"

namespace shardwright::cuda {
namespace {

constexpr std::int64_t block = mxfp8_block_columns;
constexpr std::int64_t most_blocks = std::numeric_limits<std::int32_t>::max();

/// Rows [row, row + rows) and columns [column, column + columns) of an encoding.
EncodedPart part_of(const TileToEncode& encoding, std::int64_t row, std::int64_t rows, std::int64_t column,
                    std::int64_t columns) {
  const auto& [values, first_column, shared, encoded] = encoding;
  const std::int64_t bytes = bytes_of(values.dtype);
  EncodedPart part;
  part.row_stride = values.row_stride * bytes;
  part.column_stride = values.column_stride * bytes;
  part.values =
      static_cast<const std::byte*>(values.data) + row * part.row_stride + column * part.column_stride;
  if (shared.first != nullptr && column == 0) part.first_scales = shared.first + row;
  if (shared.last != nullptr && column + columns == values.columns) part.last_scales = shared.last + row;
  if (encoded.elements != nullptr) {
    part.elements = reinterpret_cast<std::byte*>(encoded.elements + row * encoded.row_stride + column);
  }
  part.scales = encoded.scales + row * encoded.scale_row_stride + (first_column + column) / block;
  part.element_row_stride = encoded.row_stride;
  part.scale_row_stride = encoded.scale_row_stride;
  part.rows = static_cast<std::uint32_t>(rows);
  part.columns = static_cast<std::uint32_t>(columns);
  part.first_column = static_cast<std::uint32_t>((first_column + column) % block);
  part.dtype = values.dtype;
  part.rows_are_closer = std::abs(values.row_stride) < std::abs(values.column_stride);
  return part;
}

std::int64_t squares(std::int64_t length) { return (length + square - 1) / square; }

void add(std::vector<EncodingLaunch>& launches, EncodedPart part) {
  const int value_bytes = bytes_of(part.dtype);
  const std::int64_t across = squares(std::int64_t{part.first_column} + part.columns);
  const std::int64_t blocks = across * squares(part.rows);
  part.blocks_across = static_cast<std::uint32_t>(across);
  auto open = std::find_if(launches.rbegin(), launches.rend(),
                           [&](const EncodingLaunch& launch) { return launch.value_bytes == value_bytes; });
  if (open == launches.rend() || open->batch.count == most_parts || open->blocks + blocks > most_blocks) {
    EncodingLaunch& launch = launches.emplace_back();
    launch.value_bytes = value_bytes;
    launch.shared_bytes = encoding_shared_bytes(static_cast<std::size_t>(value_bytes));
    open = launches.rbegin();
  }
  part.first_block = open->blocks;
  open->blocks += static_cast<std::uint32_t>(blocks);
  open->batch.tiles[open->batch.count++] = part;
}

}  // namespace

std::vector<EncodingLaunch> encoding_launches_for(std::span<const TileToEncode> encodings,
                                                  std::int64_t longest) {
  std::vector<EncodingLaunch> launches;
  for (const TileToEncode& encoding : encodings) {
    const ValueTile& values = encoding.values;
    if (!can_encode(values.dtype)) {
      throw std::invalid_argument("cannot encode " + std::string(name_of(values.dtype)) +
                                  " elements as MXFP8; expected BF16, F16 or F32");
    }
    for (std::int64_t row = 0; row < values.rows; row += longest) {
      const std::int64_t rows = std::min(longest, values.rows - row);
      // Cut between blocks only.
      const std::int64_t whole_blocks = std::max(block, longest / block * block);
      for (std::int64_t column = 0, columns = 0; column < values.columns; column += columns) {
        columns = std::min(whole_blocks - (encoding.first_column + column) % block, values.columns - column);
        add(launches, part_of(encoding, row, rows, column, columns));
      }
    }
  }
  return launches;
}

}  // namespace shardwright::cuda
