#pragma once

// The placing kernels: what one thread of one block does, as functions of the numbers of block and thread.
// For the device, and for tests, which call them on the CPU for all threads one after the other, one phase
// (what lies between two barriers) after the other.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cuda/place_chunk.h"
#include "kernels/cuda/placed_tile.h"

namespace shardwright::cuda {

/// The tile that a block works on: the last one whose first block is not beyond it.
template <class Batch>
SHARDWRIGHT_HOST_DEVICE inline const auto& tile_of_block(const Batch& batch, std::uint32_t block) {
  std::uint32_t low = 0;
  std::uint32_t high = batch.count;  // the tile is in [low, high)
  while (high - low > 1) {
    const std::uint32_t middle = (low + high) / 2;
    if (batch.tiles[middle].first_block <= block) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return batch.tiles[low];
}

/// Straight: a block takes chunks_across chunks of each of as many rows as its threads make up, and that
/// rows_of_thread times, downwards.
template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline void place_straight(std::uint32_t block, std::uint32_t thread,
                                                   const PlacedTile& tile) {
  const std::uint32_t place = block - tile.first_block;
  const std::uint32_t down = place / tile.blocks_across;
  const std::uint32_t across = place - down * tile.blocks_across;
  const std::uint32_t rows = threads_in_block / tile.chunks_across;
  const std::uint32_t column =
      (across * tile.chunks_across + (thread & (tile.chunks_across - 1))) * chunk_elements;
  if (column >= tile.columns) return;
  const std::uint32_t rest = tile.columns - column;
  const std::uint32_t count = rest < chunk_elements ? rest : chunk_elements;
  std::uint32_t row = down * rows * rows_of_thread + thread / tile.chunks_across;
  for (std::uint32_t i = 0; i < rows_of_thread && row < tile.rows; ++i, row += rows) {
    std::byte* to = tile.destination + row * tile.row_stride + column * tile.column_stride;
    if (!tile.by_definition) {
      store_chunk(placed_chunk<Unit>(tile, row, column, count), to, tile.column_stride, count);
      continue;
    }
    for (std::uint32_t right = 0; right < count; ++right, to += tile.column_stride) {
      store(to, static_cast<Unit>(defined_element(tile, row, column + right)));
    }
  }
}

/// Transposed, up to the barrier: the square goes into shared memory, each of its columns a row there. The
/// threads of a warp take 8 rows of 4 chunks: 64 bytes of FP8 from each, and different banks.
template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline void transpose_in(std::uint32_t block, std::uint32_t thread,
                                                 const PlacedTile& tile, std::byte* shared) {
  static_assert(square == 4 * chunk_elements && square * 4 == threads_in_block);
  const std::uint32_t place = block - tile.first_block;
  const std::uint32_t down = thread / 32 * 8 + thread % 8;
  const std::uint32_t right = thread % 32 / 8 * chunk_elements;
  const std::uint32_t row = place / tile.blocks_across * square + down;
  const std::uint32_t column = place % tile.blocks_across * square + right;
  if (row >= tile.rows || column >= tile.columns) return;
  const std::uint32_t rest = tile.columns - column;
  const std::uint32_t count = rest < chunk_elements ? rest : chunk_elements;
  std::byte* to = shared + place_in_square(right, down, sizeof(Unit));
  const auto store_next = [&to](Unit element) {
    std::memcpy(__builtin_assume_aligned(to, sizeof(Unit)), &element, sizeof(Unit));
    to += square_pitch(sizeof(Unit));
  };
  if (tile.by_definition) {
    for (std::uint32_t i = 0; i < count; ++i) {
      store_next(static_cast<Unit>(defined_element(tile, row, column + i)));
    }
    return;
  }
  const Chunk<Unit> chunk = placed_chunk<Unit>(tile, row, column, count);
  SHARDWRIGHT_UNROLL
  for (std::uint32_t i = 0; i < chunk_elements; ++i) store_next(chunk.elements[i]);
}

/// Transposed, after the barrier: each thread writes a chunk of elements that lie below each other in the
/// source.
template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline void transpose_out(std::uint32_t block, std::uint32_t thread,
                                                  const PlacedTile& tile, const std::byte* shared) {
  const std::uint32_t place = block - tile.first_block;
  const std::uint32_t down = thread % 4 * chunk_elements;
  const std::uint32_t right = thread / 4;
  const std::uint32_t row = place / tile.blocks_across * square + down;
  const std::uint32_t column = place % tile.blocks_across * square + right;
  if (row >= tile.rows || column >= tile.columns) return;
  const std::uint32_t rest = tile.rows - row;
  const std::uint32_t count = rest < chunk_elements ? rest : chunk_elements;
  Chunk<Unit> chunk;
  const std::byte* from = shared + place_in_square(right, down, sizeof(Unit));
  std::memcpy(&chunk, __builtin_assume_aligned(from, sizeof(Unit) < 4 ? 4 : sizeof(Unit)), sizeof chunk);
  store_chunk(chunk, tile.destination + row * tile.row_stride + column * tile.column_stride, tile.row_stride,
              count);
}

}  // namespace shardwright::cuda
