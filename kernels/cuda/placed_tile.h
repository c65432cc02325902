#pragma once

// What a launch of the placing kernels is given, and how tiles are put into launches. Plain C++: the tests
// run the launches on the CPU.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/decode.h"
#include "kernels/number_formats.h"

namespace shardwright::cuda {

inline constexpr unsigned threads_in_block = 256;

/// Elements of a row that a thread takes at a time: 16 bytes of FP8, half an MXFP8 block.
inline constexpr unsigned chunk_elements = 16;

/// Rows that a thread of the straight kernel takes, one after the other.
inline constexpr unsigned rows_of_thread = 4;

/// Rows and columns that a block of the transposing kernel takes.
inline constexpr unsigned square = 64;

/// Blocks of scales along one dimension.
struct ScaleSteps {
  std::uint32_t size = 1;   ///< elements of a block
  std::uint32_t first = 0;  ///< where the tile begins in its first block
  std::int32_t shift = 0;   ///< log2(size), or -1 if it is not a power of two
};

/// A tile as a kernel is given it. Pointers are those of the device, strides are in bytes.
struct PlacedTile {
  const std::byte* source = nullptr;
  const std::byte* scales = nullptr;  ///< null: the elements are copied or converted
  std::byte* destination = nullptr;
  std::int64_t source_row_stride = 0;
  std::int64_t scale_row_stride = 0;  ///< scales, not bytes
  std::int64_t row_stride = 0;
  std::int64_t column_stride = 0;
  std::uint32_t rows = 0;
  std::uint32_t columns = 0;
  ScaleSteps scale_rows;
  ScaleSteps scale_columns;
  std::uint32_t first_block = 0;    ///< of the launch's thread blocks, the first that works on this tile
  std::uint32_t blocks_across = 1;  ///< thread blocks beside each other along a row
  std::uint32_t chunks_across = 1;  ///< straight: chunks beside each other in a block; a power of two
  std::uint32_t source_bytes = 1;   ///< that an element takes
  DType source_dtype = DType::BF16;
  DType destination_dtype = DType::BF16;
  DType scale_dtype = DType::F8_E8M0;
  Product product = Product::exact_once;
  bool code_eight_is_plus_zero = false;  ///< of F4
  bool begins_in_high_nibble = false;    ///< of F4 and I4
  bool by_definition = false;            ///< slowly, but exactly
  std::uint32_t global_bits = 0;         ///< of the global scale, an F32 number
};

/// Tiles of one launch: as many as fit into the 4 KiB that kernel parameters may take on any driver.
inline constexpr std::size_t most_tiles = 28;

struct TileBatch {
  PlacedTile tiles[most_tiles];
  std::uint32_t count = 0;
};
static_assert(sizeof(TileBatch) <= 4096);

enum class Layout : std::uint8_t {
  straight,    ///< rows of the source are written as they come, to any strides
  transposed,  ///< by way of shared memory, for destinations where a column's elements are closer together
};

struct Launch {
  Layout layout = Layout::straight;
  int element_bytes = 2;  ///< of the destinations
  std::uint32_t blocks = 0;
  std::size_t shared_bytes = 0;
  TileBatch batch;
};

/// Bytes from one row to the next of a square in shared memory: an odd number of 4-byte banks for elements of
/// up to 4 bytes, so that neither rows nor columns meet in one bank.
SHARDWRIGHT_HOST_DEVICE constexpr std::uint32_t square_pitch(std::uint32_t element_bytes) {
  return square * element_bytes + (element_bytes < 4 ? 4 : element_bytes);
}

/// Where an element of a square is in shared memory. Each chunk's worth of rows begins 16 bytes later: rows
/// that are a chunk apart, which a warp writes at once, would meet in one bank otherwise.
SHARDWRIGHT_HOST_DEVICE constexpr std::uint32_t place_in_square(std::uint32_t row, std::uint32_t column,
                                                                std::uint32_t element_bytes) {
  return row * square_pitch(element_bytes) + row / chunk_elements * 16 + column * element_bytes;
}

/// Bytes that a square takes there.
SHARDWRIGHT_HOST_DEVICE constexpr std::uint32_t square_bytes(std::uint32_t element_bytes) {
  return place_in_square(square - 1, square, element_bytes);
}

/// A tile of memory that the device can read, and where it goes. Without scales (data is null) as place()
/// does it, with scales as decode() does.
struct Placing {
  SourceTile source;
  BlockScales scales;
  DestinationTile destination;
};

/// The largest number of rows or columns of one tile; larger ones are cut.
inline constexpr std::int64_t longest_side = std::int64_t{1} << 30;

/// As few launches as take all the tiles; those of one launch agree in layout and in the size of destination
/// elements, nothing else. Throws std::invalid_argument for what place() and decode() refuse. `longest` may
/// be less than longest_side in tests.
std::vector<Launch> launches_for(std::span<const Placing> placings, std::int64_t longest = longest_side);

}  // namespace shardwright::cuda
