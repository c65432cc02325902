#include "kernels/decode.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>

#include "kernels/float_arithmetic.h"
#include "kernels/floating_point_mode.h"
#include "kernels/instruction_sets.h"
#include "kernels/panels.h"
#include "kernels/scaled_element.h"
#include "kernels/strided.h"

namespace shardwright {
namespace {

// Scales of a straight run are spread, one for each element, over so many elements at a time.
constexpr std::int64_t spread_columns = 2048;

bool is_e8m0(DType scale) { return scale == DType::U8 || scale == DType::F8_E8M0; }
bool is_float(DType dtype) { return dtype == DType::F16 || dtype == DType::BF16 || dtype == DType::F32; }
bool is_nvfp4(Product product) {
  return product == Product::modelopt_nvfp4 || product == Product::compressed_tensors_nvfp4;
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

// The two kinds of scales that the kernels take, one for each element of a run, from the scales of a tile.

/// MXFP8's: as they are stored.
struct ByteScales {
  using Spread = std::uint8_t;
  using Bits = std::uint8_t;
  const BlockScales& scales;
  SpreadScales<Spread> spread;
  DecodeRun any;
  DecodeRun in_range;  ///< for scales from lowest_scale_in_range to highest_scale_in_range

  void read(std::int64_t number, std::int64_t stride, std::int64_t count, Spread* bytes) const {
    const auto* from = static_cast<const std::uint8_t*>(scales.data) + number;
    if (stride == 1) {
      std::memcpy(bytes, from, static_cast<std::size_t>(count));
    } else {
      for (std::int64_t i = 0; i < count; ++i) bytes[i] = from[i * stride];
    }
  }
  static bool is_in_range(Spread scale) {
    return scale >= lowest_scale_in_range && scale <= highest_scale_in_range;
  }
};

/// Calls use(i, stride) for each i below `count`. A stride of 1, which is the usual one, is known to the
/// compiler, so that it makes vectors of what `use` does.
template <class Use>
void for_each_at(std::int64_t stride, std::int64_t count, Use use) {
  if (stride == 1) {
    for (std::int64_t i = 0; i < count; ++i) use(i, std::int64_t{1});
  } else {
    for (std::int64_t i = 0; i < count; ++i) use(i, stride);
  }
}

/// Those of all other formats, as F32 numbers.
struct FloatScales {
  using Spread = float;
  using Bits = std::uint32_t;
  const BlockScales& scales;
  const InstructionSet& set;
  SpreadScales<Spread> spread;
  ScaleRun any;
  ScaleRun
      in_range;  ///< for scales from 2^-highest_exponent_in_range on and below 2^highest_exponent_in_range

  void read(std::int64_t number, std::int64_t stride, std::int64_t count, Spread* factors) const {
    switch (scales.dtype) {
      case DType::F32:
        read_bits<std::uint32_t>(number, stride, count, factors, [](std::uint32_t bits) { return bits; });
        break;
      case DType::BF16:
        read_bits<std::uint16_t>(number, stride, count, factors, float_bits<bfloat16>);
        break;
      case DType::F16:
        read_bits<std::uint16_t>(number, stride, count, factors, float_bits<float16>);
        break;
      case DType::F8_E4M3:
        read_e4m3(number, stride, count, factors);
        break;
      default:
        read_bits<std::uint8_t>(number, stride, count, factors, [](std::uint32_t bits) {
          return float_bits_of_e8m0(static_cast<std::uint8_t>(bits));
        });
    }
    if (scales.product == Product::modelopt_nvfp4) {
      for (std::int64_t i = 0; i < count; ++i) factors[i] *= scales.global;
    } else if (scales.product == Product::compressed_tensors_nvfp4) {
      for (std::int64_t i = 0; i < count; ++i) factors[i] /= scales.global;
    }
  }

  static bool is_in_range(Spread factor) {
    return (std::bit_cast<std::uint32_t>(factor) & 0x7FFFFFFF) - least < most - least;
  }

 private:
  static constexpr std::uint32_t least = (127 - highest_exponent_in_range) << 23;
  static constexpr std::uint32_t most = (127 + highest_exponent_in_range) << 23;

  void read_e4m3(std::int64_t number, std::int64_t stride, std::int64_t count, Spread* factors) const {
    if (count < set.shortest_run) {
      return read_bits<std::uint8_t>(number, stride, count, factors, float_bits<e4m3fn>);
    }
    const auto* from = static_cast<const std::uint8_t*>(scales.data) + number;
    std::uint8_t gathered[spread_columns];
    if (stride != 1) {
      for (std::int64_t i = 0; i < count; ++i) gathered[i] = from[i * stride];
      from = gathered;
    }
    set.e4m3_to_f32(from, count, factors, Store::cached);
  }

  template <class Stored, class ToFloat>
  void read_bits(std::int64_t number, std::int64_t stride, std::int64_t count, Spread* factors,
                 ToFloat float_bits_of) const {
    const auto* from = static_cast<const std::byte*>(scales.data);
    for_each_at(stride, count, [=](std::int64_t i, std::int64_t step) {
      Stored bits;
      std::memcpy(&bits, from + (number + i * step) * std::int64_t{sizeof bits}, sizeof bits);
      factors[i] = std::bit_cast<float>(float_bits_of(bits));
    });
  }
};

template <class Scales>
bool all_in_range(const typename Scales::Spread* scales, std::int64_t count) {
  typename Scales::Bits outside = 0;  // as wide as what it counts, so that the compiler makes vectors of it
  for (std::int64_t i = 0; i < count; ++i) outside |= Scales::is_in_range(scales[i]) ? 0 : 1;
  return outside == 0;
}

/// Fills `spread` with the scales of so many columns of a row, one for each column; `first_block` is the
/// number of the row's first scale. Returns whether all of them are in range.
template <class Scales>
bool spread_over_columns(const Scales& scales, std::int64_t first_block, std::int64_t column,
                         std::int64_t columns, typename Scales::Spread* spread) {
  typename Scales::Spread of_blocks[spread_columns];
  of_blocks[0] = {};  // there is always one, which gcc does not see
  const std::int64_t length = scales.scales.block_columns;
  const std::int64_t from_first = scales.scales.first_column + column;
  const std::int64_t block = from_first / length;
  const std::int64_t count = (from_first + columns - 1) / length + 1 - block;
  scales.read(first_block + block, 1, count, of_blocks);
  scales.spread(of_blocks, (block + 1) * length - from_first, length, columns, spread);
  return all_in_range<Scales>(of_blocks, count);
}

/// Fills `gathered` with the scales of so many rows in one column of blocks. Returns whether all are in
/// range.
template <class Scales>
bool gather_over_rows(const Scales& scales, std::int64_t row, std::int64_t rows, std::int64_t block,
                      typename Scales::Spread* gathered) {
  typename Scales::Spread of_blocks[most_panel_rows];
  of_blocks[0] = {};
  const std::int64_t length = scales.scales.block_rows;
  const std::int64_t row_stride = scales.scales.row_stride;
  const std::int64_t from_first = scales.scales.first_row + row;
  const std::int64_t block_row = from_first / length;
  const std::int64_t number = block_row * row_stride + block;
  if (length == 1) {
    scales.read(number, row_stride, rows, gathered);
    return all_in_range<Scales>(gathered, rows);
  }
  const std::int64_t count = (from_first + rows - 1) / length + 1 - block_row;
  scales.read(number, row_stride, count, of_blocks);
  scales.spread(of_blocks, (block_row + 1) * length - from_first, length, rows, gathered);
  return all_in_range<Scales>(of_blocks, count);
}

/// The e5m2 numbers that the codes of a packed dtype stand for.
template <DType dtype>
constexpr std::array<std::uint8_t, 16> e5m2_of_codes = [] {
  std::array<std::uint8_t, 16> table{};
  for (std::size_t code = 0; code < table.size(); ++code) {
    table[code] = static_cast<std::uint8_t>(nearest<e5m2>(exact_value_of(dtype, code)));
  }
  return table;
}();

/// Packed elements as e5m2 numbers, which hold every value that four bits can have here: one byte each, so
/// that all that can be done to FP8 can be done to them.
class UnpackedLines {
 public:
  UnpackedLines(const InstructionSet& set, const SourceTile& source, bool code_eight_is_plus_zero)
      : unpack_(set.unpack_nibbles),
        source_(source),
        table_(source.dtype == DType::F4 ? e5m2_of_codes<DType::F4> : e5m2_of_codes<DType::I4>) {
    if (source.dtype == DType::F4 && code_eight_is_plus_zero) table_[8] = 0;
  }
  static std::int64_t element_bytes() { return 1; }

  /// A panel's lines, or a row of spread_columns; what was unpacked before is gone.
  Lines operator()(std::int64_t row, std::int64_t rows, std::int64_t column, std::int64_t columns) const {
    const std::int64_t first = element_of(column);
    const std::int64_t before = first % 2;
    const std::byte* packed = stored(row, first);
    for (std::int64_t down = 0; down < rows; ++down) {
      unpack_(reinterpret_cast<const std::uint8_t*>(packed + down * source_.row_stride / 2),
              (before + columns + 1) / 2, table_.data(), unpacked_ + down * pitch);
    }
    return {reinterpret_cast<const std::byte*>(unpacked_) + before, pitch};
  }

  LinesAhead ahead(std::int64_t row, std::int64_t column, std::int64_t row_bytes) const {
    return {stored(row, element_of(column)), source_.row_stride / 2, source_.rows - row, row_bytes / 2};
  }

 private:
  static constexpr std::int64_t pitch = most_panel_row_bytes + 16;  // room for a nibble more on both sides
  static_assert(most_panel_rows * pitch >= spread_columns + 2);

  std::int64_t element_of(std::int64_t column) const {
    return column + (source_.begins_in_high_nibble ? 1 : 0);
  }

  /// The byte that an element of a row lies in.
  const std::byte* stored(std::int64_t row, std::int64_t first) const {
    return static_cast<const std::byte*>(source_.data) + (row * source_.row_stride + first) / 2;
  }

  UnpackNibbles unpack_;
  const SourceTile& source_;
  std::array<std::uint8_t, 16> table_;
  alignas(64) mutable std::uint8_t unpacked_[most_panel_rows * pitch];
};

template <class Scales, class LinesOf>
void decode_straight(const InstructionSet& set, const SourceTile& source, const LinesOf& lines_of,
                     const Scales& scales, const DestinationTile& destination) {
  const Stores stores(set, source, destination);
  alignas(64) typename Scales::Spread spread[spread_columns + most_spread_beyond];
  for (std::int64_t row = 0; row < source.rows; ++row) {
    const std::int64_t first_block =
        (scales.scales.first_row + row) / scales.scales.block_rows * scales.scales.row_stride;
    for (std::int64_t column = 0, columns = 0; column < source.columns; column += columns) {
      const std::int64_t rest = source.columns - column;
      columns = spread_columns;
      if (rest < spread_columns + set.shortest_run)
        columns = rest <= spread_columns ? rest : spread_columns / 2;
      const bool in_range = spread_over_columns(scales, first_block, column, columns, spread);
      const Lines line = lines_of(row, 1, column, columns);
      (in_range ? scales.in_range : scales.any)(reinterpret_cast<const std::uint8_t*>(line.first), spread,
                                                columns, element(destination, row, column), stores.kind);
    }
  }
}

template <class Scales, class LinesOf>
void decode_transposed(const InstructionSet& set, const SourceTile& source, const LinesOf& lines_of,
                       const Scales& scales, const DestinationTile& destination) {
  const Stores stores(set, source, destination);
  const std::int64_t size = lines_of.element_bytes();
  const auto decode_panel = [&](const std::byte* panel, std::int64_t pitch, std::int64_t row,
                                std::int64_t rows, std::int64_t column, std::int64_t columns,
                                const LinesAhead& ahead) {
    alignas(64) typename Scales::Spread scale_of_row[most_panel_rows + most_spread_beyond];
    const std::int64_t block_columns = scales.scales.block_columns;
    // The columns of one block share their scales.
    for (std::int64_t begin = 0, end = 0; begin < columns; begin = end) {
      const std::int64_t block = (scales.scales.first_column + column + begin) / block_columns;
      end = std::min(columns, (block + 1) * block_columns - scales.scales.first_column - column);
      const bool in_range = gather_over_rows(scales, row, rows, block, scale_of_row);
      const auto run = in_range ? scales.in_range : scales.any;
      for (std::int64_t right = begin; right < end; ++right) {
        ahead.fetch(right, columns);
        run(reinterpret_cast<const std::uint8_t*>(panel) + right * pitch * size, scale_of_row, rows,
            element(destination, row, column + right), stores.kind);
      }
    }
  };
  for_each_panel(set, source, lines_of, destination, decode_panel);
}

template <class Scales, class LinesOf>
void decode_runs(const InstructionSet& set, const SourceTile& source, const LinesOf& lines_of,
                 const Scales& scales, const DestinationTile& destination) {
  if (scales.any != nullptr && is_straight(destination) && source.columns >= set.shortest_run) {
    decode_straight(set, source, lines_of, scales, destination);
  } else if (scales.any != nullptr && is_transposed(destination) && source.rows >= set.shortest_run) {
    decode_transposed(set, source, lines_of, scales, destination);
  } else {
    decode_strided(source, scales.scales, destination);
  }
}

const ScaleRunsOf& scale_runs(const InstructionSet& set, DType element) {
  switch (element) {
    case DType::F8_E4M3:
      return set.scale_e4m3;
    case DType::F8_E5M2:
      return set.scale_e5m2;
    case DType::F16:
      return set.scale_f16;
    case DType::BF16:
      return set.scale_bf16;
    case DType::F32:
      return set.scale_f32;
    default:
      return set.scale_unpacked;
  }
}

}  // namespace

bool can_decode(DType element, DType scale) {
  if (is_float8(element)) return is_e8m0(scale) || is_float(scale);
  if (is_packed(element)) return is_e8m0(scale) || is_float(scale) || scale == DType::F8_E4M3;
  return is_float(element) && is_float(scale);
}

void expect_decodable(DType element, const BlockScales& scales) {
  if (!can_decode(element, scales.dtype)) {
    throw std::invalid_argument("cannot decode " + std::string(name_of(element)) +
                                " elements with scales of " + std::string(name_of(scales.dtype)));
  }
  if (is_nvfp4(scales.product) && (element != DType::F4 || scales.dtype != DType::F8_E4M3)) {
    throw std::invalid_argument("cannot decode " + std::string(name_of(element)) +
                                " elements with scales of " + std::string(name_of(scales.dtype)) +
                                " as NVFP4, which has F4 elements and F8_E4M3 scales");
  }
  if (!is_nvfp4(scales.product) && scales.global != 1) {
    throw std::invalid_argument("a global scale of " + std::to_string(scales.global) + " is given for " +
                                std::string(name_of(element)) + " elements with scales of " +
                                std::string(name_of(scales.dtype)) + "; only NVFP4 has one");
  }
}

void decode(const SourceTile& source, const BlockScales& scales, const DestinationTile& destination) {
  expect_decodable(source.dtype, scales);
  if (source.rows <= 0 || source.columns <= 0) return;
  const InstructionSet& set = instruction_set_in_use();
  if (!may_round_to_f32_first(source.dtype, scales, destination.dtype)) {
    return decode_strided(source, scales, destination);
  }
  if (source.dtype == DType::F8_E4M3 && is_e8m0(scales.dtype) && scales.product == Product::exact_once) {
    const DecodeRun any = decode_kernel(set, destination.dtype);
    const DecodeRun in_range = destination.dtype == DType::BF16 ? set.decode_to_bf16_in_range : any;
    return decode_runs(set, source, LinesInPlace{source}, ByteScales{scales, set.spread_bytes, any, in_range},
                       destination);
  }
  const DefaultFloatingPointMode mode;
  const ScaleRunsOf& runs = scale_runs(set, source.dtype);
  const FloatScales floats{scales, set, set.spread_floats, scale_kernel(runs.any, destination.dtype),
                           scale_kernel(runs.in_range, destination.dtype)};
  if (!is_packed(source.dtype)) return decode_runs(set, source, LinesInPlace{source}, floats, destination);
  const bool plus_zero = scales.code_eight_is_plus_zero || scales.product == Product::modelopt_nvfp4;
  decode_runs(set, source, UnpackedLines(set, source, plus_zero), floats, destination);
}

}  // namespace shardwright
