#include "kernels/decode.h"

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/float_arithmetic.h"
#include "kernels/instruction_sets.h"
#include "kernels/strided.h"

namespace shardwright {
namespace {

// A panel is what is transposed at once: one cache line of each of these many rows. It stays in the
// first-level cache, and each destination row gets its elements of a panel as one run of whole cache lines.
constexpr std::int64_t panel_rows = 256;
constexpr std::int64_t panel_row_bytes = 64;

// Between rows of a transposed panel, so that they do not all fall into the same few sets of the cache.
constexpr std::int64_t panel_padding_bytes = 64;

// Scales of a straight run are spread, one for each element, over so many elements at a time.
constexpr std::int64_t spread_columns = 2048;
constexpr std::int64_t usual_block = 32;

// Past the caches only what would push more useful things out of them.
constexpr std::int64_t least_streamed_bytes = 64 * 1024;

const std::byte* element(const SourceTile& tile, std::int64_t row, std::int64_t column) {
  return static_cast<const std::byte*>(tile.data) + (row * tile.row_stride + column) * bytes_of(tile.dtype);
}

std::byte* element(const DestinationTile& tile, std::int64_t row, std::int64_t column) {
  return static_cast<std::byte*>(tile.data) +
         (row * tile.row_stride + column * tile.column_stride) * bytes_of(tile.dtype);
}

bool is_straight(const DestinationTile& tile) { return tile.column_stride == 1; }
bool is_transposed(const DestinationTile& tile) { return tile.row_stride == 1; }

/// Ordinary or streaming stores for a tile; ends the streaming when it goes.
struct Stores {
  const InstructionSet& set;
  Store kind;

  Stores(const InstructionSet& instruction_set, const SourceTile& source, const DestinationTile& destination)
      : set(instruction_set),
        kind(source.rows * source.columns * bytes_of(destination.dtype) >= least_streamed_bytes
                 ? Store::streaming
                 : Store::cached) {}
  Stores(const Stores&) = delete;
  Stores& operator=(const Stores&) = delete;
  ~Stores() {
    if (kind == Store::streaming) set.finish_streaming();
  }
};

/// How many rows the panel at `row` takes: up to the limit, ending with a cache line of the destination if
/// its rows are aligned alike, and leaving no rest that would be too short for a run.
std::int64_t rows_of_panel(const SourceTile& source, const DestinationTile& destination, std::int64_t row,
                           std::int64_t shortest_run) {
  const std::int64_t size = bytes_of(destination.dtype);
  const std::int64_t rest = source.rows - row;
  if (rest <= panel_rows) return rest;
  if (rest < panel_rows + shortest_run) return panel_rows / 2;
  const auto address = reinterpret_cast<std::uintptr_t>(element(destination, row, 0));
  return panel_rows - static_cast<std::int64_t>(address % 64) / size;
}

TransposePanel transpose_kernel(const InstructionSet& set, std::int64_t element_bytes) {
  switch (element_bytes) {
    case 1:
      return set.transpose_1_byte;
    case 2:
      return set.transpose_2_bytes;
    case 4:
      return set.transpose_4_bytes;
    default:
      return set.transpose_8_bytes;
  }
}

/// Calls use(panel, pitch in elements, row, rows, column, columns) for each transposed panel of the tile.
/// Goes down all rows before it goes right, so that few rows (pages) of the destination are written at a
/// time.
template <class Use>
void for_each_panel(const InstructionSet& set, const SourceTile& source, const DestinationTile& destination,
                    Use use) {
  alignas(64) std::byte panel[static_cast<std::size_t>(panel_row_bytes * (panel_rows + panel_padding_bytes))];
  const std::int64_t size = bytes_of(source.dtype);
  const std::int64_t pitch = panel_rows + panel_padding_bytes / size;
  const std::int64_t panel_columns = panel_row_bytes / size;
  const TransposePanel transpose = transpose_kernel(set, size);
  for (std::int64_t column = 0; column < source.columns; column += panel_columns) {
    const std::int64_t columns = std::min(panel_columns, source.columns - column);
    for (std::int64_t row = 0, rows = 0; row < source.rows; row += rows) {
      rows = rows_of_panel(source, destination, row, set.shortest_run);
      transpose(element(source, row, column), source.row_stride, rows, columns, panel, pitch);
      use(panel, pitch, row, rows, column, columns);
    }
  }
}

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
  if (source == DType::BF16 && destination == DType::F32) return set.bf16_to_f32;
  if (source == DType::BF16 && destination == DType::F16) return set.bf16_to_f16;
  if (source == DType::F16 && destination == DType::F32) return set.f16_to_f32;
  if (source == DType::F16 && destination == DType::BF16) return set.f16_to_bf16;
  if (source == DType::F32 && destination == DType::BF16) return set.f32_to_bf16;
  if (source == DType::F32 && destination == DType::F16) return set.f32_to_f16;
  return nullptr;
}

DecodeRun decode_kernel(const InstructionSet& set, DType destination) {
  if (destination == DType::BF16) return set.decode_to_bf16;
  if (destination == DType::F16) return set.decode_to_f16;
  if (destination == DType::F32) return set.decode_to_f32;
  return nullptr;
}

ScaleRun scale_kernel(const ScaleRuns& runs, DType destination) {
  if (destination == DType::BF16) return runs.to_bf16;
  if (destination == DType::F16) return runs.to_f16;
  if (destination == DType::F32) return runs.to_f32;
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

// The two kinds of scales that the kernels take, one for each element of a run, from the scales of a tile.

/// MXFP8's: as they are stored.
struct ByteScales {
  using Spread = std::uint8_t;
  const BlockScales& scales;
  DecodeRun any;
  DecodeRun in_range;  ///< for scales from lowest_scale_in_range to highest_scale_in_range

  Spread operator[](std::int64_t number) const {
    return static_cast<const std::uint8_t*>(scales.data)[number];
  }
  static bool is_in_range(Spread scale) {
    return scale >= lowest_scale_in_range && scale <= highest_scale_in_range;
  }
};

/// Those of all other formats, as F32 numbers. An e8m0 scale is one, and so are its products, or too large
/// for any destination that has a kernel: rounding them twice is rounding them once.
struct FloatScales {
  using Spread = float;
  const BlockScales& scales;
  ScaleRun any;
  ScaleRun in_range;  ///< for scales other than zero, infinity and NaN

  Spread operator[](std::int64_t number) const {
    const auto* first = static_cast<const std::byte*>(scales.data);
    std::uint32_t bits = 0;
    if (scales.dtype == DType::F32) {
      std::memcpy(&bits, first + number * 4, 4);
    } else if (scales.dtype == DType::BF16) {
      std::uint16_t upper = 0;
      std::memcpy(&upper, first + number * 2, 2);
      bits = std::uint32_t{upper} << 16;
    } else {
      bits = float_bits_of_e8m0(std::to_integer<std::uint8_t>(first[number]));
    }
    return std::bit_cast<float>(bits);
  }
  static bool is_in_range(Spread scale) {
    const std::uint32_t magnitude = std::bit_cast<std::uint32_t>(scale) & 0x7FFFFFFF;
    return magnitude != 0 && magnitude < 0x7F800000;
  }
};

/// Fills `spread` with the scales of so many columns of a row, one for each column; `first_block` is the
/// number of the row's first scale. Has room for usual_block more. Returns whether all of them are in range.
template <class Scales>
bool spread_over_columns(const Scales& scales, std::int64_t first_block, std::int64_t column,
                         std::int64_t columns, typename Scales::Spread* spread) {
  bool in_range = true;
  const std::int64_t block_columns = scales.scales.block_columns;
  std::int64_t block = (scales.scales.first_column + column) / block_columns;
  std::int64_t end = (block + 1) * block_columns - scales.scales.first_column - column;
  for (std::int64_t begin = 0; begin < columns; begin = end, end += block_columns, ++block) {
    const auto scale = scales[first_block + block];
    in_range &= Scales::is_in_range(scale);
    if (block_columns == usual_block) {
      std::fill_n(spread + begin, usual_block, scale);  // a few too many, which the next block overwrites
    } else {
      std::fill(spread + begin, spread + std::min(end, columns), scale);
    }
  }
  return in_range;
}

/// Fills `gathered` with the scales of so many rows in one column of blocks. Returns whether all are in
/// range.
template <class Scales>
bool gather_over_rows(const Scales& scales, std::int64_t row, std::int64_t rows, std::int64_t block,
                      typename Scales::Spread* gathered) {
  bool in_range = true;
  const std::int64_t block_rows = scales.scales.block_rows;
  const std::int64_t row_stride = scales.scales.row_stride;
  const std::int64_t from_first = scales.scales.first_row + row;
  std::int64_t number = from_first / block_rows * row_stride + block;
  if (block_rows == 1) {  // MXFP8: filling one element at a time below would cost a call for each
    for (std::int64_t at = 0; at < rows; ++at, number += row_stride) {
      const auto scale = scales[number];
      in_range &= Scales::is_in_range(scale);
      gathered[at] = scale;
    }
    return in_range;
  }
  std::int64_t end = block_rows - from_first % block_rows;
  for (std::int64_t begin = 0; begin < rows; begin = end, end += block_rows, number += row_stride) {
    const auto scale = scales[number];
    in_range &= Scales::is_in_range(scale);
    std::fill(gathered + begin, gathered + std::min(end, rows), scale);
  }
  return in_range;
}

template <class Scales>
void decode_straight(const InstructionSet& set, const SourceTile& source, const Scales& scales,
                     const DestinationTile& destination) {
  const Stores stores(set, source, destination);
  alignas(64) typename Scales::Spread spread[spread_columns + usual_block];
  for (std::int64_t row = 0; row < source.rows; ++row) {
    const std::int64_t first_block =
        (scales.scales.first_row + row) / scales.scales.block_rows * scales.scales.row_stride;
    for (std::int64_t column = 0, columns = 0; column < source.columns; column += columns) {
      const std::int64_t rest = source.columns - column;
      columns = spread_columns;
      if (rest < spread_columns + set.shortest_run)
        columns = rest <= spread_columns ? rest : spread_columns / 2;
      const bool in_range = spread_over_columns(scales, first_block, column, columns, spread);
      (in_range ? scales.in_range : scales.any)(
          reinterpret_cast<const std::uint8_t*>(element(source, row, column)), spread, columns,
          element(destination, row, column), stores.kind);
    }
  }
}

template <class Scales>
void decode_transposed(const InstructionSet& set, const SourceTile& source, const Scales& scales,
                       const DestinationTile& destination) {
  const Stores stores(set, source, destination);
  const auto decode_panel = [&](const std::byte* panel, std::int64_t pitch, std::int64_t row,
                                std::int64_t rows, std::int64_t column, std::int64_t columns) {
    alignas(64) typename Scales::Spread scale_of_row[panel_rows];
    const std::int64_t block_columns = scales.scales.block_columns;
    // The columns of one block share their scales.
    for (std::int64_t begin = 0, end = 0; begin < columns; begin = end) {
      const std::int64_t block = (scales.scales.first_column + column + begin) / block_columns;
      end = std::min(columns, (block + 1) * block_columns - scales.scales.first_column - column);
      const bool in_range = gather_over_rows(scales, row, rows, block, scale_of_row);
      const auto run = in_range ? scales.in_range : scales.any;
      for (std::int64_t right = begin; right < end; ++right) {
        run(reinterpret_cast<const std::uint8_t*>(panel) + right * pitch, scale_of_row, rows,
            element(destination, row, column + right), stores.kind);
      }
    }
  };
  for_each_panel(set, source, destination, decode_panel);
}

template <class Scales>
void decode_runs(const InstructionSet& set, const SourceTile& source, const Scales& scales,
                 const DestinationTile& destination) {
  if (scales.any != nullptr && is_straight(destination) && source.columns >= set.shortest_run) {
    decode_straight(set, source, scales, destination);
  } else if (scales.any != nullptr && is_transposed(destination) && source.rows >= set.shortest_run) {
    decode_transposed(set, source, scales, destination);
  } else {
    decode_strided(source, scales.scales, destination);
  }
}

/// The default floating-point mode (to nearest even, subnormals as they are, no traps) as long as it lives,
/// and then the caller's again.
class DefaultFloatingPointMode {
 public:
  DefaultFloatingPointMode() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  DefaultFloatingPointMode(const DefaultFloatingPointMode&) = delete;
  DefaultFloatingPointMode& operator=(const DefaultFloatingPointMode&) = delete;
  ~DefaultFloatingPointMode() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_{};
};

bool is_e8m0(DType scale) { return scale == DType::U8 || scale == DType::F8_E8M0; }
bool is_fp8(DType element) { return element == DType::F8_E4M3 || element == DType::F8_E5M2; }
bool is_packed(DType element) { return element == DType::F4 || element == DType::I4; }
bool is_float_scale(DType scale) {
  return scale == DType::F16 || scale == DType::BF16 || scale == DType::F32;
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
    for (std::int64_t row = 0; row < source.rows; ++row) {
      kernel(element(source, row, 0), source.columns, element(destination, row, 0), stores.kind);
    }
  } else if (kernel != nullptr && is_transposed(destination) && source.rows >= set.shortest_run) {
    const Stores stores(set, source, destination);
    for_each_panel(set, source, destination,
                   [&](const std::byte* panel, std::int64_t pitch, std::int64_t row, std::int64_t rows,
                       std::int64_t column, std::int64_t columns) {
                     for (std::int64_t right = 0; right < columns; ++right) {
                       kernel(panel + right * pitch * bytes_of(source.dtype), rows,
                              element(destination, row, column + right), stores.kind);
                     }
                   });
  } else {
    place_strided(source, destination);
  }
}

bool can_decode(DType element, DType scale) {
  if (is_fp8(element)) return is_e8m0(scale) || is_float_scale(scale);
  if (is_packed(element)) return is_e8m0(scale) || is_float_scale(scale) || scale == DType::F8_E4M3;
  return is_float_scale(element) && is_float_scale(scale);
}

void expect_decodable(DType element, const BlockScales& scales) {
  if (!can_decode(element, scales.dtype)) {
    throw std::invalid_argument("cannot decode " + std::string(name_of(element)) +
                                " elements with scales of " + std::string(name_of(scales.dtype)));
  }
  const bool is_nvfp4 =
      scales.product == Product::modelopt_nvfp4 || scales.product == Product::compressed_tensors_nvfp4;
  if (is_nvfp4 && (element != DType::F4 || scales.dtype != DType::F8_E4M3)) {
    throw std::invalid_argument("cannot decode " + std::string(name_of(element)) +
                                " elements with scales of " + std::string(name_of(scales.dtype)) +
                                " as NVFP4, which has F4 elements and F8_E4M3 scales");
  }
  if (!is_nvfp4 && scales.global != 1) {
    throw std::invalid_argument("a global scale of " + std::to_string(scales.global) + " is given for " +
                                std::string(name_of(element)) + " elements with scales of " +
                                std::string(name_of(scales.dtype)) + "; only NVFP4 has one");
  }
}

void decode(const SourceTile& source, const BlockScales& scales, const DestinationTile& destination) {
  expect_decodable(source.dtype, scales);
  if (source.rows <= 0 || source.columns <= 0) return;
  const InstructionSet& set = instruction_set_in_use();
  if (!is_fp8(source.dtype) || scales.dtype == DType::F16 ||
      is_e8m0(scales.dtype) != (scales.product == Product::exact_once)) {
    decode_strided(source, scales, destination);
  } else if (source.dtype == DType::F8_E4M3 && is_e8m0(scales.dtype)) {
    const DecodeRun any = decode_kernel(set, destination.dtype);
    const DecodeRun in_range = destination.dtype == DType::BF16 ? set.decode_to_bf16_in_range : any;
    decode_runs(set, source, ByteScales{scales, any, in_range}, destination);
  } else {
    const DefaultFloatingPointMode mode;
    const bool is_e4m3 = source.dtype == DType::F8_E4M3;
    const ScaleRun any = scale_kernel(is_e4m3 ? set.scale_e4m3 : set.scale_e5m2, destination.dtype);
    const ScaleRun in_range =
        scale_kernel(is_e4m3 ? set.scale_e4m3_in_range : set.scale_e5m2_in_range, destination.dtype);
    decode_runs(set, source, FloatScales{scales, any, in_range}, destination);
  }
}

}  // namespace shardwright
