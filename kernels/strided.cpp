#include "kernels/strided.h"

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/number_formats.h"
#include "kernels/scaled_element.h"

namespace shardwright {
namespace {

template <int bytes>
struct Bits;
template <>
struct Bits<1> {
  using type = std::uint8_t;
};
template <>
struct Bits<2> {
  using type = std::uint16_t;
};
template <>
struct Bits<4> {
  using type = std::uint32_t;
};
template <>
struct Bits<8> {
  using type = std::uint64_t;
};

template <FloatFormat format>
using BitsOf = typename Bits<(1 + format.exponent_bits + format.mantissa_bits) / 8>::type;

/// Calls change(value, row, column) for each element and writes what it returns. Nothing has to be aligned.
template <class From, class To, class Change>
void for_each_element(const SourceTile& source, const DestinationTile& destination, Change change) {
  const auto* from = static_cast<const std::byte*>(source.data);
  auto* to = static_cast<std::byte*>(destination.data);
  for (std::int64_t row = 0; row < source.rows; ++row) {
    for (std::int64_t column = 0; column < source.columns; ++column) {
      From value;
      std::memcpy(&value, from + (row * source.row_stride + column) * std::int64_t{sizeof(From)},
                  sizeof(From));
      const To changed = change(value, row, column);
      std::memcpy(
          to + (row * destination.row_stride + column * destination.column_stride) * std::int64_t{sizeof(To)},
          &changed, sizeof(To));
    }
  }
}

template <class T>
void copy(const SourceTile& source, const DestinationTile& destination) {
  for_each_element<T, T>(source, destination, [](T value, std::int64_t, std::int64_t) { return value; });
}

template <FloatFormat from, FloatFormat to>
void convert(const SourceTile& source, const DestinationTile& destination) {
  for_each_element<BitsOf<from>, BitsOf<to>>(
      source, destination, [](BitsOf<from> bits, std::int64_t, std::int64_t) {
        return static_cast<BitsOf<to>>(nearest<to>(exact_value<from>(bits)));
      });
}

template <FloatFormat to>
void convert_from_any(const SourceTile& source, const DestinationTile& destination) {
  switch (source.dtype) {
    case DType::F8_E4M3:
      return convert<e4m3fn, to>(source, destination);
    case DType::F8_E5M2:
      return convert<e5m2, to>(source, destination);
    case DType::F16:
      return convert<float16, to>(source, destination);
    case DType::BF16:
      return convert<bfloat16, to>(source, destination);
    case DType::F32:
      return convert<float32, to>(source, destination);
    case DType::F64:
      return convert<float64, to>(source, destination);
    default:
      throw std::invalid_argument("cannot convert from " + std::string(name_of(source.dtype)));
  }
}

std::uint64_t load(const std::byte* from, int bytes) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, from, static_cast<std::size_t>(bytes));
  return bits;
}

std::uint64_t element_bits(const SourceTile& source, std::int64_t row, std::int64_t column) {
  const auto* data = static_cast<const std::byte*>(source.data);
  const int bytes = bytes_of(source.dtype);
  if (bytes != 0) return load(data + (row * source.row_stride + column) * bytes, bytes);
  const std::int64_t nibble = row * source.row_stride + column + (source.begins_in_high_nibble ? 1 : 0);
  return load(data + nibble / 2, 1) >> nibble % 2 * 4 & 0xF;
}

template <FloatFormat to>
void decode_to(const SourceTile& source, const BlockScales& scales, const DestinationTile& destination) {
  const Scaling scaling = scaling_of(source.dtype, scales, std::bit_cast<std::uint32_t>(scales.global));
  const auto* first_scale = static_cast<const std::byte*>(scales.data);
  const int scale_bytes = bytes_of(scales.dtype);
  for (std::int64_t row = 0; row < source.rows; ++row) {
    const std::int64_t first_block = (scales.first_row + row) / scales.block_rows * scales.row_stride;
    for (std::int64_t column = 0; column < source.columns; ++column) {
      const std::int64_t block = first_block + (scales.first_column + column) / scales.block_columns;
      const auto bits = static_cast<BitsOf<to>>(nearest<to>(exact_product(
          scaling, element_bits(source, row, column), load(first_scale + block * scale_bytes, scale_bytes))));
      const std::int64_t place = row * destination.row_stride + column * destination.column_stride;
      std::memcpy(static_cast<std::byte*>(destination.data) + place * std::int64_t{sizeof bits}, &bits,
                  sizeof bits);
    }
  }
}

}  // namespace

void place_strided(const SourceTile& source, const DestinationTile& destination) {
  if (source.dtype == destination.dtype) {
    switch (bytes_of(source.dtype)) {
      case 1:
        return copy<std::uint8_t>(source, destination);
      case 2:
        return copy<std::uint16_t>(source, destination);
      case 4:
        return copy<std::uint32_t>(source, destination);
      default:
        return copy<std::uint64_t>(source, destination);
    }
  }
  switch (destination.dtype) {
    case DType::F16:
      return convert_from_any<float16>(source, destination);
    case DType::BF16:
      return convert_from_any<bfloat16>(source, destination);
    case DType::F32:
      return convert_from_any<float32>(source, destination);
    case DType::F64:
      return convert_from_any<float64>(source, destination);
    default:
      throw std::invalid_argument("cannot convert to " + std::string(name_of(destination.dtype)));
  }
}

void decode_strided(const SourceTile& source, const BlockScales& scales, const DestinationTile& destination) {
  switch (destination.dtype) {
    case DType::F16:
      return decode_to<float16>(source, scales, destination);
    case DType::BF16:
      return decode_to<bfloat16>(source, scales, destination);
    case DType::F32:
      return decode_to<float32>(source, scales, destination);
    case DType::F64:
      return decode_to<float64>(source, scales, destination);
    default:
      throw std::invalid_argument("cannot decode to " + std::string(name_of(destination.dtype)));
  }
}

}  // namespace shardwright
