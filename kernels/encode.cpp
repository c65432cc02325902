#include "kernels/encode.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/decode.h"
#include "kernels/instruction_sets.h"
#include "kernels/number_formats.h"

namespace shardwright {
namespace {

constexpr std::int64_t block = mxfp8_block_columns;

// What is regrouped at once if the columns of a row are not neighbours: stays in the first-level cache.
constexpr std::int64_t panel_rows = 64;
constexpr std::int64_t panel_columns = 4 * block;

const std::byte* element(const ValueTile& tile, std::int64_t row, std::int64_t column) {
  return static_cast<const std::byte*>(tile.data) +
         (row * tile.row_stride + column * tile.column_stride) * bytes_of(tile.dtype);
}

ExactNumber exact_value_at(const std::byte* address, DType dtype) {
  std::uint32_t bits = 0;
  if (dtype == DType::F32) {
    std::memcpy(&bits, address, 4);
    return exact_value<float32>(bits);
  }
  std::uint16_t half = 0;
  std::memcpy(&half, address, 2);
  return dtype == DType::BF16 ? exact_value<bfloat16>(half) : exact_value<float16>(half);
}

std::uint8_t scale_of(const std::byte* run, DType dtype, std::int64_t count) {
  std::uint8_t scale = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    scale = std::max(scale, smallest_scale(exact_value_at(run + i * bytes_of(dtype), dtype)));
  }
  return scale;
}

void encode_run(const std::byte* run, DType dtype, std::int64_t count, std::uint8_t scale,
                std::uint8_t* elements) {
  for (std::int64_t i = 0; i < count; ++i) {
    elements[i] = encoded(exact_value_at(run + i * bytes_of(dtype), dtype), scale);
  }
}

FindScales find_kernel(const InstructionSet& set, DType dtype) {
  return dtype == DType::BF16  ? set.find_scales_bf16
         : dtype == DType::F16 ? set.find_scales_f16
                               : set.find_scales_f32;
}

EncodeBlocks encode_kernel(const InstructionSet& set, DType dtype) {
  return dtype == DType::BF16 ? set.encode_bf16 : dtype == DType::F16 ? set.encode_f16 : set.encode_f32;
}

/// Calls use(block number, columns, whole blocks) for the parts of a row: its first block if it is cut, the
/// whole blocks together, its last block if it is cut.
template <class Use>
void for_each_part(std::int64_t first_column, std::int64_t columns, Use use) {
  std::int64_t column = 0;
  if (first_column != 0) {
    column = std::min(columns, block - first_column);
    use(std::int64_t{0}, std::int64_t{0}, column, std::int64_t{0});
  }
  const std::int64_t whole_blocks = (columns - column) / block;
  const auto number_at = [&](std::int64_t at) { return (first_column + at) / block; };
  if (whole_blocks > 0) use(number_at(column), column, whole_blocks * block, whole_blocks);
  column += whole_blocks * block;
  if (column < columns) use(number_at(column), column, columns - column, std::int64_t{0});
}

void find_straight(const ValueTile& values, std::int64_t first_column, std::uint8_t* scales,
                   std::int64_t scale_row_stride) {
  const FindScales kernel = find_kernel(instruction_set_in_use(), values.dtype);
  for (std::int64_t row = 0; row < values.rows; ++row, scales += scale_row_stride) {
    for_each_part(first_column, values.columns,
                  [&](std::int64_t number, std::int64_t column, std::int64_t columns, std::int64_t blocks) {
                    const std::byte* run = element(values, row, column);
                    if (blocks > 0 && kernel != nullptr) return kernel(run, blocks, scales + number);
                    for (std::int64_t at = 0; at < columns; at += block, ++number) {
                      scales[number] = scale_of(run + at * bytes_of(values.dtype), values.dtype,
                                                std::min(block, columns - at));
                    }
                  });
  }
}

void encode_straight(const ValueTile& values, std::int64_t first_column, const EncodedTile& to) {
  const EncodeBlocks kernel = encode_kernel(instruction_set_in_use(), values.dtype);
  for (std::int64_t row = 0; row < values.rows; ++row) {
    const std::uint8_t* scales = to.scales + row * to.scale_row_stride;
    for_each_part(first_column, values.columns,
                  [&](std::int64_t number, std::int64_t column, std::int64_t columns, std::int64_t blocks) {
                    const std::byte* run = element(values, row, column);
                    std::uint8_t* elements = to.elements + row * to.row_stride + column;
                    if (blocks > 0 && kernel != nullptr)
                      return kernel(run, scales + number, blocks, elements);
                    for (std::int64_t at = 0; at < columns; at += block, ++number) {
                      encode_run(run + at * bytes_of(values.dtype), values.dtype,
                                 std::min(block, columns - at), scales[number], elements + at);
                    }
                  });
  }
}

/// Calls use(straight tile, its first column in its block, row, column) for panels that make up the tile. No
/// block is cut that the tile does not cut.
template <class Use>
void for_each_panel(const ValueTile& values, std::int64_t first_column, Use use) {
  alignas(64) std::byte memory[panel_rows * panel_columns * sizeof(float)];
  for (std::int64_t row = 0; row < values.rows; row += panel_rows) {
    const std::int64_t rows = std::min(panel_rows, values.rows - row);
    for (std::int64_t column = 0, columns = 0; column < values.columns; column += columns) {
      const std::int64_t first = (first_column + column) % block;
      columns = std::min(panel_columns - first, values.columns - column);
      // Native rows, which lie along HF columns, become the rows of what is placed.
      const DestinationTile panel{memory, values.dtype, 1, panel_columns};
      if (values.row_stride == 1 || rows == 1) {
        place({element(values, row, column), values.dtype, columns, rows, values.column_stride}, panel);
      } else {
        for (std::int64_t r = 0; r < rows; ++r) {
          std::byte* to = memory + r * panel_columns * bytes_of(values.dtype);
          place({element(values, row + r, column), values.dtype, columns, 1, values.column_stride},
                {to, values.dtype, 1, 1});
        }
      }
      use(ValueTile{memory, values.dtype, rows, columns, panel_columns, 1}, first, row, column);
    }
  }
}

bool is_straight(const ValueTile& values) { return values.column_stride == 1 || values.columns == 1; }

void expect_encodable(DType dtype) {
  if (can_encode(dtype)) return;
  throw std::invalid_argument("cannot encode " + std::string(name_of(dtype)) +
                              " elements as MXFP8; expected BF16, F16 or F32");
}

/// Finds the scales of a straight tile, shared ones being given, and encodes it.
void find_and_encode(const ValueTile& values, std::int64_t first_column, const SharedScales& shared,
                     const EncodedTile& to) {
  find_straight(values, first_column, to.scales, to.scale_row_stride);
  const std::int64_t last_block = (first_column + values.columns - 1) / block;
  for (std::int64_t row = 0; row < values.rows; ++row) {
    std::uint8_t* scales = to.scales + row * to.scale_row_stride;
    if (shared.last != nullptr) scales[last_block] = shared.last[row];
    if (shared.first != nullptr) scales[0] = shared.first[row];
  }
  encode_straight(values, first_column, to);
}

}  // namespace

bool can_encode(DType dtype) { return dtype == DType::BF16 || dtype == DType::F16 || dtype == DType::F32; }

void encode(const ValueTile& values, std::int64_t first_column, const SharedScales& shared,
            const EncodedTile& to) {
  expect_encodable(values.dtype);
  if (values.rows <= 0 || values.columns <= 0) return;
  if (is_straight(values)) return find_and_encode(values, first_column, shared, to);
  for_each_panel(
      values, first_column,
      [&](const ValueTile& panel, std::int64_t first, std::int64_t row, std::int64_t column) {
        const bool is_first = column == 0;
        const bool is_last = column + panel.columns == values.columns;
        const SharedScales of_panel{shared.first != nullptr && is_first ? shared.first + row : nullptr,
                                    shared.last != nullptr && is_last ? shared.last + row : nullptr};
        find_and_encode(
            panel, first, of_panel,
            {to.elements + row * to.row_stride + column, to.row_stride,
             to.scales + row * to.scale_row_stride + (first_column + column) / block, to.scale_row_stride});
      });
}

void find_scales(const ValueTile& values, std::int64_t first_column, std::uint8_t* scales,
                 std::int64_t scale_row_stride) {
  expect_encodable(values.dtype);
  if (values.rows <= 0 || values.columns <= 0) return;
  if (is_straight(values)) return find_straight(values, first_column, scales, scale_row_stride);
  for_each_panel(values, first_column,
                 [&](const ValueTile& panel, std::int64_t first, std::int64_t row, std::int64_t column) {
                   find_straight(panel, first,
                                 scales + row * scale_row_stride + (first_column + column) / block,
                                 scale_row_stride);
                 });
}

}  // namespace shardwright
