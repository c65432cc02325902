#pragma once

// What a launch of the encoding kernel is given, and how tiles are put into launches. Plain C++, like
// placed_tile.h.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cuda/placed_tile.h"
#include "kernels/encode.h"

namespace shardwright::cuda {

/// A tile of values, and where its elements and scales go: the arguments of encode() of kernels/encode.h,
/// with pointers of the device. Without elements only the scales are found.
struct TileToEncode {
  ValueTile values;
  std::int64_t first_column = 0;  ///< where the tile's column 0 lies in its block of 32, 0 .. 31
  SharedScales shared;
  EncodedTile encoded;
};

/// The same as a kernel is given it. Strides are in bytes.
struct EncodedPart {
  const std::byte* values = nullptr;
  const std::uint8_t* first_scales = nullptr;  ///< of rows, for a first block that other tiles share; or null
  const std::uint8_t* last_scales = nullptr;
  std::byte* elements = nullptr;
  std::uint8_t* scales = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;
  std::int64_t element_row_stride = 0;
  std::int64_t scale_row_stride = 0;
  std::uint32_t rows = 0;
  std::uint32_t columns = 0;
  std::uint32_t first_column = 0;
  std::uint32_t first_block = 0;    ///< of the launch's thread blocks, the first that works on this tile
  std::uint32_t blocks_across = 1;  ///< thread blocks beside each other along a row; each takes a square
  DType dtype = DType::BF16;
  bool rows_are_closer = false;  ///< a column's elements are closer together than a row's
};

inline constexpr std::size_t most_parts = 32;

struct EncodedBatch {
  EncodedPart tiles[most_parts];
  std::uint32_t count = 0;
};
static_assert(sizeof(EncodedBatch) <= 4096);

struct EncodingLaunch {
  int value_bytes = 2;
  std::uint32_t blocks = 0;
  std::size_t shared_bytes = 0;
  EncodedBatch batch;
};

/// As few launches as take all the tiles; those of one launch agree in the size of values. Throws
/// std::invalid_argument for dtypes that encode() refuses. `longest` as in launches_for.
std::vector<EncodingLaunch> encoding_launches_for(std::span<const TileToEncode> encodings,
                                                  std::int64_t longest = longest_side);

}  // namespace shardwright::cuda
