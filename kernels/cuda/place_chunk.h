#pragma once

// What one thread does to a chunk: up to chunk_elements neighbours of a row. For host and device.

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cuda/placed_tile.h"
#include "kernels/float_arithmetic.h"
#include "kernels/scaled_element.h"

#if defined(__CUDA_ARCH__)
#define SHARDWRIGHT_UNROLL _Pragma("unroll")
#else
#define SHARDWRIGHT_UNROLL
#endif

namespace shardwright::cuda {

/// The elements of a chunk, as the bits that they have.
template <class Unit>
struct Chunk {
  Unit elements[chunk_elements];
};

template <std::size_t alignment>
SHARDWRIGHT_HOST_DEVICE inline bool is_aligned(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) % alignment == 0;
}

/// Bytes of a chunk that are moved at once.
template <class Unit>
inline constexpr std::size_t vector_bytes = sizeof(Chunk<Unit>) < 16 ? sizeof(Chunk<Unit>) : 16;

template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline Unit load(const std::byte* from) {
  Unit unit;
  if (is_aligned<sizeof(Unit)>(from)) {
    std::memcpy(&unit, __builtin_assume_aligned(from, sizeof(Unit)), sizeof unit);
  } else {
    std::memcpy(&unit, from, sizeof unit);
  }
  return unit;
}

template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline void store(std::byte* to, Unit unit) {
  if (is_aligned<sizeof(Unit)>(to)) {
    std::memcpy(__builtin_assume_aligned(to, sizeof(Unit)), &unit, sizeof unit);
  } else {
    std::memcpy(to, &unit, sizeof unit);
  }
}

/// `count` elements side by side; those beyond are zero.
template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline Chunk<Unit> load_chunk(const std::byte* from, unsigned count) {
  Chunk<Unit> chunk;
  if (count == chunk_elements && is_aligned<vector_bytes<Unit>>(from)) {
    std::memcpy(&chunk, __builtin_assume_aligned(from, vector_bytes<Unit>), sizeof chunk);
    return chunk;
  }
  SHARDWRIGHT_UNROLL
  for (unsigned i = 0; i < chunk_elements; ++i) {
    chunk.elements[i] = i < count ? load<Unit>(from + i * sizeof(Unit)) : Unit{0};
  }
  return chunk;
}

/// The first `count` elements, `stride` bytes from one to the next.
template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline void store_chunk(const Chunk<Unit>& chunk, std::byte* to, std::int64_t stride,
                                                unsigned count) {
  if (count == chunk_elements && stride == std::int64_t{sizeof(Unit)} && is_aligned<vector_bytes<Unit>>(to)) {
    std::memcpy(__builtin_assume_aligned(to, vector_bytes<Unit>), &chunk, sizeof chunk);
    return;
  }
  SHARDWRIGHT_UNROLL
  for (unsigned i = 0; i < chunk_elements; ++i) {
    if (i < count) store(to + static_cast<std::int64_t>(i) * stride, chunk.elements[i]);
  }
}

SHARDWRIGHT_HOST_DEVICE inline const std::byte* address(const PlacedTile& tile, std::uint32_t row,
                                                        std::uint32_t column) {
  return tile.source + row * tile.source_row_stride + std::size_t{column} * tile.source_bytes;
}

/// The number of the block that an index of the tile is in.
SHARDWRIGHT_HOST_DEVICE inline std::uint32_t block_of(const ScaleSteps& steps, std::uint32_t index) {
  const std::uint32_t place = steps.first + index;
  return steps.shift >= 0 ? place >> steps.shift : place / steps.size;
}

/// A scale as it is stored.
SHARDWRIGHT_HOST_DEVICE inline std::uint32_t stored_scale(const PlacedTile& tile, std::uint32_t row,
                                                          std::uint32_t block) {
  const std::int64_t number = block_of(tile.scale_rows, row) * tile.scale_row_stride + block;
  if (tile.scale_dtype == DType::F32) return load<std::uint32_t>(tile.scales + number * 4);
  if (tile.scale_dtype == DType::BF16 || tile.scale_dtype == DType::F16) {
    return load<std::uint16_t>(tile.scales + number * 2);
  }
  return load<std::uint8_t>(tile.scales + number);
}

/// The bits of its value in F32.
SHARDWRIGHT_HOST_DEVICE inline std::uint32_t float_bits_of_scale(DType dtype, std::uint32_t stored) {
  if (dtype == DType::F32) return stored;
  if (dtype == DType::BF16) return stored << 16;
  return float_bits_of_e8m0(static_cast<std::uint8_t>(stored));
}

// --- by way of F32: all but F64
// -------------------------------------------------------------------------------

struct Floats : Chunk<std::uint32_t> {
  bool are_upper_halves =
      false;  ///< the lower 16 bits of all are zero, and none is NaN: BF16 numbers already
};

template <FloatFormat format, class Unit>
SHARDWRIGHT_HOST_DEVICE inline Floats convert_chunk(const std::byte* from, unsigned count) {
  const auto chunk = load_chunk<Unit>(from, count);
  Floats floats;
  SHARDWRIGHT_UNROLL
  for (unsigned i = 0; i < chunk_elements; ++i) floats.elements[i] = float_bits<format>(chunk.elements[i]);
  return floats;
}

/// FP8 elements, four to a word, the first in the lowest byte.
struct Fp8Chunk {
  std::uint32_t words[chunk_elements / 4];
};

/// As load_chunk, but never apart into bytes where one access brings all of them.
SHARDWRIGHT_HOST_DEVICE inline Fp8Chunk load_fp8(const std::byte* from, unsigned count) {
  Fp8Chunk chunk{};
  if (count == chunk_elements && is_aligned<sizeof(Fp8Chunk)>(from)) {
    std::memcpy(&chunk, __builtin_assume_aligned(from, sizeof chunk), sizeof chunk);
    return chunk;
  }
  SHARDWRIGHT_UNROLL
  for (unsigned i = 0; i < chunk_elements; ++i) {
    if (i < count) chunk.words[i / 4] |= std::uint32_t{load<std::uint8_t>(from + i)} << (i % 4 * 8);
  }
  return chunk;
}

SHARDWRIGHT_HOST_DEVICE inline std::uint32_t element_of(const Fp8Chunk& chunk, unsigned i) {
  return (chunk.words[i / 4] >> (i % 4 * 8)) & 0xFF;
}

/// FP8 elements times their scales.
template <FloatFormat format>
SHARDWRIGHT_HOST_DEVICE inline Floats scale_chunk(const PlacedTile& tile, const std::byte* from,
                                                  std::uint32_t row, std::uint32_t column, unsigned count) {
  const Fp8Chunk chunk = load_fp8(from, count);
  const std::uint32_t block = block_of(tile.scale_columns, column);
  const bool has_one_scale = block == block_of(tile.scale_columns, column + count - 1);
  std::uint32_t scale = float_bits_of_scale(tile.scale_dtype, stored_scale(tile, row, block));
  Floats floats;
  // Nearly all chunks have one scale and no NaN: that takes few instructions.
  bool is_plain = has_one_scale && (scale & 0x7F800000U) != 0x7F800000U;
  for (const std::uint32_t word : chunk.words) is_plain = is_plain && !has_special<format>(word);
  if (is_plain) {
    SHARDWRIGHT_UNROLL
    for (unsigned i = 0; i < chunk_elements; ++i) {
      floats.elements[i] = bits_of_float(finite_value<format>(element_of(chunk, i)) * float_of_bits(scale));
    }
    // A power of two that takes no element, down to the 2^-16 of e5m2, below the normal range. What it takes
    // beyond the range is infinite in BF16 as well.
    floats.are_upper_halves = (scale & 0x807FFFFFU) == 0 && scale >= 17U << 23;
    return floats;
  }
  SHARDWRIGHT_UNROLL
  for (unsigned i = 0; i < chunk_elements; ++i) {
    if (!has_one_scale && i < count) {
      const std::uint32_t own = block_of(tile.scale_columns, column + i);
      scale = float_bits_of_scale(tile.scale_dtype, stored_scale(tile, row, own));
    }
    floats.elements[i] = scaled_float_bits<format>(element_of(chunk, i), scale);
  }
  return floats;
}

SHARDWRIGHT_HOST_DEVICE inline Floats floats_of_chunk(const PlacedTile& tile, const std::byte* from,
                                                      std::uint32_t row, std::uint32_t column,
                                                      unsigned count) {
  switch (tile.source_dtype) {
    case DType::F8_E4M3:
      if (tile.scales != nullptr) return scale_chunk<e4m3fn>(tile, from, row, column, count);
      return convert_chunk<e4m3fn, std::uint8_t>(from, count);
    case DType::F8_E5M2:
      if (tile.scales != nullptr) return scale_chunk<e5m2>(tile, from, row, column, count);
      return convert_chunk<e5m2, std::uint8_t>(from, count);
    case DType::F16:
      return convert_chunk<float16, std::uint16_t>(from, count);
    case DType::BF16:
      return convert_chunk<bfloat16, std::uint16_t>(from, count);
    default:
      return {load_chunk<std::uint32_t>(from, count)};
  }
}

template <FloatFormat format, class Unit>
SHARDWRIGHT_HOST_DEVICE inline Chunk<Unit> round_chunk(const Floats& floats) {
  Chunk<Unit> chunk;
  if (format.mantissa_bits == bfloat16.mantissa_bits && floats.are_upper_halves) {
    SHARDWRIGHT_UNROLL
    for (unsigned i = 0; i < chunk_elements; ++i)
      chunk.elements[i] = static_cast<Unit>(floats.elements[i] >> 16);
    return chunk;
  }
  SHARDWRIGHT_UNROLL
  for (unsigned i = 0; i < chunk_elements; ++i) {
    chunk.elements[i] = static_cast<Unit>(nearest_of_float<format>(floats.elements[i]));
  }
  return chunk;
}

/// The elements at (row, column) and its neighbours to the right, as the destination wants them.
template <class Unit>
SHARDWRIGHT_HOST_DEVICE inline Chunk<Unit> placed_chunk(const PlacedTile& tile, std::uint32_t row,
                                                        std::uint32_t column, unsigned count) {
  const std::byte* first = address(tile, row, column);
  if constexpr (sizeof(Unit) == 2 || sizeof(Unit) == 4) {
    if (tile.source_dtype != tile.destination_dtype) {
      const Floats floats = floats_of_chunk(tile, first, row, column, count);
      if constexpr (sizeof(Unit) == 4) return round_chunk<float32, Unit>(floats);
      if (tile.destination_dtype == DType::F16) return round_chunk<float16, Unit>(floats);
      return round_chunk<bfloat16, Unit>(floats);
    }
  }
  return load_chunk<Unit>(first, count);
}

// --- by the definition: from or to F64, where integers are the only exact way
// ---------------------------------

SHARDWRIGHT_HOST_DEVICE inline std::uint64_t element_bits(const PlacedTile& tile, std::uint32_t row,
                                                          std::uint32_t column) {
  if (tile.source_bytes == 0) {
    const std::uint32_t nibble = column + (tile.begins_in_high_nibble ? 1 : 0);
    const std::byte* from = tile.source + row * tile.source_row_stride + nibble / 2;
    return load<std::uint8_t>(from) >> nibble % 2 * 4 & 0xF;
  }
  const std::byte* from = address(tile, row, column);
  switch (tile.source_bytes) {
    case 1:
      return load<std::uint8_t>(from);
    case 2:
      return load<std::uint16_t>(from);
    case 4:
      return load<std::uint32_t>(from);
    default:
      return load<std::uint64_t>(from);
  }
}

/// One element, for what no faster way is exact.
SHARDWRIGHT_HOST_DEVICE inline std::uint64_t defined_element(const PlacedTile& tile, std::uint32_t row,
                                                             std::uint32_t column) {
  const std::uint64_t element = element_bits(tile, row, column);
  ExactNumber number;
  if (tile.scales != nullptr) {
    const Scaling scaling{tile.source_dtype, tile.scale_dtype, tile.product, tile.code_eight_is_plus_zero,
                          tile.global_bits};
    number = exact_product(scaling, element, stored_scale(tile, row, block_of(tile.scale_columns, column)));
  } else {
    number = exact_value_of(tile.source_dtype, element);
  }
  switch (tile.destination_dtype) {
    case DType::BF16:
      return nearest<bfloat16>(number);
    case DType::F16:
      return nearest<float16>(number);
    case DType::F32:
      return nearest<float32>(number);
    default:
      return nearest<float64>(number);
  }
}

}  // namespace shardwright::cuda
