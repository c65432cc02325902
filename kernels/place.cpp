#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/decode.h"
#include "kernels/instruction_sets.h"
#include "kernels/panels.h"
#include "kernels/strided.h"

namespace shardwright {
namespace {

ConvertRun convert_kernel(const InstructionSet& set, DType source, DType destination) {
  if (source == destination) {
    switch (bytes_of(source)) {
      case 1:
        return set.copy_1_byte;
      case 2:
        return set.copy_2_bytes;
      case 4:
        return set.copy_4_bytes;
      default:
        return set.copy_8_bytes;
    }
  }
  if (source == DType::F8_E4M3 && destination == DType::F32) return set.e4m3_to_f32;
  if (source == DType::BF16 && destination == DType::F32) return set.bf16_to_f32;
  if (source == DType::BF16 && destination == DType::F16) return set.bf16_to_f16;
  if (source == DType::F16 && destination == DType::F32) return set.f16_to_f32;
  if (source == DType::F16 && destination == DType::BF16) return set.f16_to_bf16;
  if (source == DType::F32 && destination == DType::BF16) return set.f32_to_bf16;
  if (source == DType::F32 && destination == DType::F16) return set.f32_to_f16;
  return nullptr;
}

/// Copies rows of a format that packs several elements into a byte, which have to begin and end with a byte.
void place_packed(const SourceTile& source, const DestinationTile& destination) {
  const int bits = bits_of(source.dtype);
  if (source.begins_in_high_nibble || !is_straight(destination) || source.columns * bits % 8 != 0 ||
      source.row_stride * bits % 8 != 0 || destination.row_stride * bits % 8 != 0) {
    throw std::invalid_argument(
        "cannot place " + std::string(name_of(source.dtype)) +
        " elements that share a byte with elements outside the tile, or transpose them");
  }
  for (std::int64_t row = 0; row < source.rows; ++row) {
    std::memcpy(static_cast<std::byte*>(destination.data) + row * destination.row_stride * bits / 8,
                static_cast<const std::byte*>(source.data) + row * source.row_stride * bits / 8,
                static_cast<std::size_t>(source.columns * bits / 8));
  }
}

/// One row in place of many, where the rows follow each other without gaps on both sides.
void join_rows(SourceTile& source, DestinationTile& destination) {
  if (is_straight(destination) && source.row_stride == source.columns &&
      destination.row_stride == source.columns) {
    source.columns *= source.rows;
    source.rows = 1;
  }
}

}  // namespace

bool can_convert(DType source, DType destination) {
  if (source == destination) return true;
  return (is_wide_float(source) || source == DType::F8_E4M3 || source == DType::F8_E5M2) &&
         is_wide_float(destination);
}

void place(const SourceTile& given_source, const DestinationTile& given_destination) {
  if (given_source.rows <= 0 || given_source.columns <= 0) return;
  if (bytes_of(given_source.dtype) == 0) return place_packed(given_source, given_destination);
  SourceTile source = given_source;
  DestinationTile destination = given_destination;
  join_rows(source, destination);

  const InstructionSet& set = instruction_set_in_use();
  const ConvertRun kernel = convert_kernel(set, source.dtype, destination.dtype);
  if (kernel != nullptr && is_straight(destination) && source.columns >= set.shortest_run) {
    const Stores stores(set, source, destination);
    // Rows may be short and many.
    const auto* from = static_cast<const std::byte*>(source.data);
    auto* to = static_cast<std::byte*>(destination.data);
    const std::int64_t step_from = source.row_stride * bytes_of(source.dtype);
    const std::int64_t step_to = destination.row_stride * bytes_of(destination.dtype);
    for (std::int64_t row = 0; row < source.rows; ++row) {
      kernel(from + row * step_from, source.columns, to + row * step_to, stores.kind);
    }
  } else if (kernel != nullptr && is_transposed(destination) && source.rows >= set.shortest_run) {
    const Stores stores(set, source, destination);
    for_each_panel(set, source, LinesInPlace{source}, destination,
                   [&](const std::byte* panel, std::int64_t pitch, std::int64_t row, std::int64_t rows,
                       std::int64_t column, std::int64_t columns, const LinesAhead& ahead) {
                     for (std::int64_t right = 0; right < columns; ++right) {
                       ahead.fetch(right, columns);
                       kernel(panel + right * pitch * bytes_of(source.dtype), rows,
                              element(destination, row, column + right), stores.kind);
                     }
                   });
  } else {
    place_strided(source, destination);
  }
}

}  // namespace shardwright
