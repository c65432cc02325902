#pragma once

// The encoding kernel: what one thread of one block does between barriers, for host and device, like
// place_bodies.h. A block takes a square of 64 rows and 64 columns, which is two MXFP8 blocks wide.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cuda/encoded_tile.h"
#include "kernels/cuda/place_chunk.h"

namespace shardwright::cuda {

inline constexpr std::uint32_t chunks_in_row = square / chunk_elements;
inline constexpr std::uint32_t rows_at_once = threads_in_block / chunks_in_row;
inline constexpr std::uint32_t chunks_in_scale_block = mxfp8_block_columns / chunk_elements;

/// Shared memory: the square's values as they are stored, see place_in_square, and then for each
/// chunk the largest magnitude in it, as F32 bits.
SHARDWRIGHT_HOST_DEVICE constexpr std::size_t offset_of_magnitudes(std::size_t value_bytes) {
  return square_bytes(static_cast<std::uint32_t>(value_bytes));
}
SHARDWRIGHT_HOST_DEVICE constexpr std::size_t encoding_shared_bytes(std::size_t value_bytes) {
  return offset_of_magnitudes(value_bytes) + std::size_t{square} * chunks_in_row * sizeof(std::uint32_t);
}

/// Where a block's square lies in the tile. Its columns begin with an MXFP8 block: before the tile's first,
/// if the tile begins inside one.
struct Square {
  std::uint32_t first_row;
  std::int64_t first_column;
};

SHARDWRIGHT_HOST_DEVICE inline Square square_of(const EncodedPart& tile, std::uint32_t block) {
  const std::uint32_t place = block - tile.first_block;
  return {place / tile.blocks_across * square,
          std::int64_t{place % tile.blocks_across} * square - tile.first_column};
}

/// `count` neighbours from an address on, `stride` bytes from one to the next, of which those from `begin` to
/// `end` are there. Zero stands for the others.
template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline Chunk<Unit> values_in_memory(const std::byte* from, std::int64_t stride,
                                                            std::int64_t begin, std::int64_t end) {
  if (begin <= 0 && end >= chunk_elements && stride == std::int64_t{sizeof(Unit)}) {
    return load_chunk<Unit>(from, chunk_elements);
  }
  Chunk<Unit> chunk;
  SHARDWRIGHT_UNROLL
  for (int i = 0; i < static_cast<int>(chunk_elements); ++i) {
    chunk.elements[i] = i >= begin && i < end ? load<Unit>(from + i * stride) : Unit{0};
  }
  return chunk;
}

/// First phase: the square into shared memory, along the direction in which it lies closer together.
template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline void read_square(std::uint32_t block, std::uint32_t thread,
                                                const EncodedPart& tile, std::byte* shared) {
  const Square at = square_of(tile, block);
  const std::uint32_t along = thread % chunks_in_row * chunk_elements;
  for (std::uint32_t other = thread / chunks_in_row; other < square; other += rows_at_once) {
    const std::uint32_t down = tile.rows_are_closer ? along : other;
    const std::uint32_t right = tile.rows_are_closer ? other : along;
    const std::uint32_t row = at.first_row + down;
    const std::int64_t column = at.first_column + right;
    const std::byte* from = tile.values + row * tile.row_stride + column * tile.column_stride;
    std::byte* to = shared + place_in_square(down, right, sizeof(Unit));
    Chunk<Unit> chunk{};
    if (tile.rows_are_closer) {
      const bool is_there = column >= 0 && column < tile.columns;
      chunk = values_in_memory<Unit>(from, tile.row_stride, 0, is_there ? std::int64_t{tile.rows} - row : 0);
    } else {
      const bool is_there = row < tile.rows;
      chunk = values_in_memory<Unit>(from, tile.column_stride, -column, is_there ? tile.columns - column : 0);
    }
    const std::size_t step = tile.rows_are_closer ? square_pitch(sizeof(Unit)) : sizeof(Unit);
    SHARDWRIGHT_UNROLL
    for (std::uint32_t i = 0; i < chunk_elements; ++i) {
      std::memcpy(__builtin_assume_aligned(to + i * step, sizeof(Unit)), &chunk.elements[i], sizeof(Unit));
    }
  }
}

template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline Floats floats_in_square(DType dtype, const std::byte* shared,
                                                       std::uint32_t row, std::uint32_t chunk_number) {
  Chunk<Unit> chunk;
  const std::byte* from = shared + place_in_square(row, chunk_number * chunk_elements, sizeof(Unit));
  std::memcpy(&chunk, __builtin_assume_aligned(from, 4), sizeof chunk);
  Floats floats;
  SHARDWRIGHT_UNROLL
  for (std::uint32_t i = 0; i < chunk_elements; ++i) {
    if constexpr (sizeof(Unit) == 4) {
      floats.elements[i] = chunk.elements[i];
    } else {
      floats.elements[i] = dtype == DType::BF16 ? float_bits<bfloat16>(chunk.elements[i])
                                                : float_bits<float16>(chunk.elements[i]);
    }
  }
  return floats;
}

/// Second phase: the largest magnitude of each chunk. NaN counts for nothing.
template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline void find_magnitudes(std::uint32_t thread, const EncodedPart& tile,
                                                    std::byte* shared) {
  const std::uint32_t chunk = thread % chunks_in_row;
  for (std::uint32_t row = thread / chunks_in_row; row < square; row += rows_at_once) {
    const Floats floats = floats_in_square<Unit>(tile.dtype, shared, row, chunk);
    std::uint32_t largest = 0;
    SHARDWRIGHT_UNROLL
    for (std::uint32_t i = 0; i < chunk_elements; ++i) {
      const std::uint32_t magnitude = floats.elements[i] & 0x7FFFFFFFU;
      if (magnitude > largest && magnitude <= 0x7F800000U) largest = magnitude;
    }
    store(shared + offset_of_magnitudes(sizeof(Unit)) + (row * chunks_in_row + chunk) * sizeof largest,
          largest);
  }
}

/// Third phase: the scale of each block from the magnitudes of its four chunks, and each chunk's elements.
template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline void write_encoded(std::uint32_t block, std::uint32_t thread,
                                                  const EncodedPart& tile, const std::byte* shared) {
  const Square at = square_of(tile, block);
  const std::uint32_t chunk = thread % chunks_in_row;
  const std::uint32_t first_chunk = chunk / chunks_in_scale_block * chunks_in_scale_block;
  const std::int64_t block_begin = at.first_column + std::int64_t{first_chunk} * chunk_elements;
  if (block_begin >= tile.columns) return;
  const std::int64_t scale_number = (block_begin + tile.first_column) / mxfp8_block_columns;
  const std::int64_t last_number = (std::int64_t{tile.first_column} + tile.columns - 1) / mxfp8_block_columns;
  const std::int64_t column = at.first_column + std::int64_t{chunk} * chunk_elements;
  const std::int64_t begin = column < 0 ? -column : 0;
  const std::int64_t rest = tile.columns - column;
  const std::int64_t end = rest < chunk_elements ? rest : chunk_elements;

  for (std::uint32_t down = thread / chunks_in_row; down < square; down += rows_at_once) {
    const std::uint32_t row = at.first_row + down;
    if (row >= tile.rows) return;
    std::uint32_t largest = 0;
    SHARDWRIGHT_UNROLL
    for (std::uint32_t i = 0; i < chunks_in_scale_block; ++i) {
      const auto magnitude =
          load<std::uint32_t>(shared + offset_of_magnitudes(sizeof(Unit)) +
                              (down * chunks_in_row + first_chunk + i) * sizeof(std::uint32_t));
      if (magnitude > largest) largest = magnitude;
    }
    std::uint8_t scale = smallest_scale(exact_value<float32>(largest));
    if (tile.last_scales != nullptr && scale_number == last_number) scale = tile.last_scales[row];
    if (tile.first_scales != nullptr && scale_number == 0) scale = tile.first_scales[row];
    if (chunk == first_chunk) tile.scales[row * tile.scale_row_stride + scale_number] = scale;
    if (tile.elements == nullptr || begin >= end) continue;

    const Floats floats = floats_in_square<Unit>(tile.dtype, shared, down, chunk);
    Chunk<std::uint8_t> encoded;
    SHARDWRIGHT_UNROLL
    for (std::uint32_t i = 0; i < chunk_elements; ++i) {
      encoded.elements[i] = encoded_float(floats.elements[i], scale);
    }
    std::byte* to = tile.elements + row * tile.element_row_stride + column;
    if (begin == 0) {
      store_chunk(encoded, to, 1, static_cast<unsigned>(end));
      continue;
    }
    SHARDWRIGHT_UNROLL
    for (std::uint32_t i = 0; i < chunk_elements; ++i) {
      if (i >= begin && i < end) store(to + i, encoded.elements[i]);
    }
  }
}

}  // namespace shardwright::cuda
