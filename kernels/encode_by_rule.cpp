#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/decode.h"
#include "kernels/encode.h"
#include "kernels/float_arithmetic.h"
#include "kernels/floating_point_mode.h"
#include "kernels/instruction_sets.h"
#include "kernels/scaled_element.h"

namespace shardwright {
namespace {

// In the order of the enumeration, so that a rule is its own index.
constexpr std::array<EncodedFormat, 8> formats{{
    {EncodingRule::mxfp8, "mxfp8", DType::F8_E4M3, DType::U8, 1, 32, Product::exact_once, false},
    {EncodingRule::block_fp8, "block_fp8", DType::F8_E4M3, DType::F32, 128, 128, Product::to_f32_first,
     false},
    {EncodingRule::mxfp4_modelopt, "mxfp4-modelopt", DType::F4, DType::U8, 1, 32, Product::exact_once, false},
    {EncodingRule::mxfp4_ocp, "mxfp4-ocp", DType::F4, DType::U8, 1, 32, Product::exact_once, false},
    {EncodingRule::mxfp4_gpt_oss, "mxfp4-gpt-oss", DType::F4, DType::U8, 1, 32, Product::exact_once, false},
    {EncodingRule::nvfp4_modelopt, "nvfp4-modelopt", DType::F4, DType::F8_E4M3, 1, 16,
     Product::modelopt_nvfp4, true},
    {EncodingRule::nvfp4_compressed_tensors, "nvfp4-compressed-tensors", DType::F4, DType::F8_E4M3, 1, 16,
     Product::compressed_tensors_nvfp4, true},
    {EncodingRule::int4_compressed_tensors, "int4-compressed-tensors", DType::I4, DType::BF16, 1, 32,
     Product::exact_once, false},
}};

constexpr bool formats_follow_the_enumeration() {
  for (std::size_t index = 0; index < formats.size(); ++index) {
    if (static_cast<std::size_t>(formats[index].rule) != index) return false;
  }
  return static_cast<std::size_t>(EncodingRule::int4_compressed_tensors) + 1 == formats.size();
}
static_assert(formats_follow_the_enumeration());

// --- panels: what is looked at at once, as F32 numbers, which hold all values exactly
// --------------------------

constexpr std::int64_t panel_rows = 64;
constexpr std::int64_t panel_columns = 128;

struct Panel {
  alignas(64) float values[panel_rows][panel_columns];
  std::int64_t row = 0;
  std::int64_t rows = 0;
  std::int64_t column = 0;
  std::int64_t columns = 0;
};

const std::byte* value_at(const ValueTile& tile, std::int64_t row, std::int64_t column) {
  return static_cast<const std::byte*>(tile.data) +
         (row * tile.row_stride + column * tile.column_stride) * bytes_of(tile.dtype);
}

void read_panel(const ValueTile& values, Panel& panel) {
  const auto read = [&](std::int64_t row, std::int64_t rows) {
    float* to = panel.values[row - panel.row];
    const std::byte* from = value_at(values, row, panel.column);
    if (values.column_stride == 1 || panel.columns == 1) {
      place({from, values.dtype, rows, panel.columns, values.row_stride}, {to, DType::F32, panel_columns, 1});
    } else {
      // The tile's columns, which its rows lie along, are the rows of what is placed.
      place({from, values.dtype, panel.columns, rows, values.column_stride},
            {to, DType::F32, 1, panel_columns});
    }
  };
  if (values.column_stride == 1 || panel.columns == 1 || values.row_stride == 1 || panel.rows == 1) {
    return read(panel.row, panel.rows);
  }
  for (std::int64_t row = panel.row; row < panel.row + panel.rows; ++row) read(row, 1);
}

template <class Use>
void for_each_panel(const ValueTile& values, Use use) {
  Panel panel;
  for (panel.row = 0; panel.row < values.rows; panel.row += panel_rows) {
    panel.rows = std::min(panel_rows, values.rows - panel.row);
    for (panel.column = 0; panel.column < values.columns; panel.column += panel_columns) {
      panel.columns = std::min(panel_columns, values.columns - panel.column);
      read_panel(values, panel);
      use(static_cast<const Panel&>(panel));
    }
  }
}

/// Calls use(block column, first column, end column) for the pieces of blocks that some columns consist of.
template <class Use>
void for_each_piece(const BlockGrid& grid, std::int64_t column, std::int64_t columns, Use use) {
  std::int64_t block = (grid.first_column + column) / grid.block_columns;
  for (std::int64_t begin = column, end = column; begin < column + columns; begin = end, ++block) {
    end = std::min(column + columns, (block + 1) * grid.block_columns - grid.first_column);
    use(block, begin, end);
  }
}

std::uint32_t magnitude_bits(float value) { return bits_of_float(value) & 0x7FFFFFFF; }

// --- arithmetic of the rules
// -----------------------------------------------------------------------------------

/// An F32 number rounded to a dtype that values may have, as torch rounds what it computes with them.
float in_dtype(DType dtype, float value) {
  const std::uint32_t bits = bits_of_float(value);
  if (dtype == DType::BF16) return float_of_bits(float_bits<bfloat16>(nearest_of_float<bfloat16>(bits)));
  if (dtype == DType::F16) return float_of_bits(float_bits<float16>(nearest_of_float<float16>(bits)));
  return value;
}

float smallest_normal(DType dtype) { return dtype == DType::F16 ? 0x1p-14F : 0x1p-126F; }

float epsilon(DType dtype) {
  return dtype == DType::BF16 ? 0x1p-7F : dtype == DType::F16 ? 0x1p-10F : 0x1p-23F;
}

float e4m3_value(std::uint8_t code) { return float_of_bits(float_bits<e4m3fn>(code)); }

/// The e4m3 code nearest to a number; what is too large becomes 448.
std::uint8_t e4m3_code(float value) { return encoded_float(bits_of_float(value), 127); }

/// The exponent of a positive number as F32 has it, that of subnormal numbers as if they were normal.
int exponent_of(float positive) { return std::ilogb(positive); }

std::uint8_t e8m0_byte(int exponent) { return static_cast<std::uint8_t>(std::clamp(exponent + 127, 0, 254)); }

float e8m0_value(std::uint8_t byte) { return float_of_bits(float_bits_of_e8m0(byte)); }

std::uint8_t modelopt_mxfp4_scale(float largest) {
  const float descale = largest / 6.0F;
  if (descale == 0) return 0;
  const int exponent = exponent_of(descale);
  return e8m0_byte(descale == std::ldexp(1.0F, exponent) ? exponent : exponent + 1);
}

std::uint8_t ocp_mxfp4_scale(float largest) {
  if (largest == 0) return 0;
  const int exponent = exponent_of(largest);
  const bool is_high = std::ldexp(largest, -exponent) >= 1.75F;
  return e8m0_byte(exponent + (is_high ? 1 : 0) - 2);
}

std::uint8_t gpt_oss_scale(float largest) {
  return static_cast<std::uint8_t>((bits_of_float(largest / 6.0F) + 0x007FFFFF) >> 23);
}

/// A scale as it is stored, by its bits, and the factor for values.
struct Scale {
  std::uint32_t stored = 0;
  float factor = 1;
};

Scale scale_of(EncodingRule rule, DType values, float largest, float global) {
  switch (rule) {
    case EncodingRule::mxfp8: {
      const std::uint8_t byte = smallest_scale(exact_value<float32>(bits_of_float(largest)));
      return {byte, e8m0_value(static_cast<std::uint8_t>(254 - byte))};
    }
    case EncodingRule::block_fp8: {
      const float factor = largest > 0 ? 1.0F / largest * 448.0F : 1.0F;
      return {bits_of_float(1.0F / factor), factor};
    }
    case EncodingRule::mxfp4_modelopt: {
      const std::uint8_t byte = modelopt_mxfp4_scale(largest);
      return {byte, e8m0_value(byte)};
    }
    case EncodingRule::mxfp4_ocp: {
      const std::uint8_t byte = ocp_mxfp4_scale(largest);
      return {byte, e8m0_value(byte)};
    }
    case EncodingRule::mxfp4_gpt_oss: {
      const std::uint8_t byte = gpt_oss_scale(largest);
      return {byte, byte == 0 ? 0.0F : 1.0F / e8m0_value(byte)};
    }
    case EncodingRule::nvfp4_modelopt: {
      float scale = largest / (6.0F * global);
      if (largest == 0) scale = 1;
      const std::uint8_t code = e4m3_code(std::clamp(scale, 0x1p-9F, 448.0F));
      return {code, e4m3_value(code) * global};
    }
    case EncodingRule::nvfp4_compressed_tensors: {
      std::uint8_t code = e4m3_code(std::min(global * in_dtype(values, largest / 6.0F), 448.0F));
      if (code == 0) code = e4m3_code(0.125F);
      return {code, e4m3_value(code) / global};
    }
    case EncodingRule::int4_compressed_tensors: {
      float scale = in_dtype(values, largest / 7.5F);
      if (scale == 0) scale = epsilon(values);
      const std::uint32_t stored = nearest_of_float<bfloat16>(bits_of_float(scale));
      return {stored, float_of_bits(stored << 16)};
    }
  }
  return {};
}

// --- codes
// -------------------------------------------------------------------------------------------------------

// Quotients, or products, of a row of a panel and then their codes: in loops of 32-bit lanes and without
// branches, so that the compiler makes vectors of them.

enum class Change { divide, multiply };

enum class Ties { to_even, down, up };

/// Which numbers get the sign bit of e2m1: those below zero; those that are not above it; those whose own is
/// set.
enum class Sign { below_zero, not_above_zero, as_it_is };

/// The magnitude's code, 0 to 7, of e2m1. A NaN gets 0.
template <Ties ties>
std::uint32_t e2m1_magnitude(float magnitude) {
  const auto above = [magnitude](float bound) { return magnitude > bound ? 1U : 0U; };
  const auto from = [magnitude](float bound) { return magnitude >= bound ? 1U : 0U; };
  const auto odd = [&](float bound) { return ties == Ties::up ? from(bound) : above(bound); };
  const auto even = [&](float bound) { return ties == Ties::down ? above(bound) : from(bound); };
  return odd(0.25F) + even(0.75F) + odd(1.25F) + even(1.75F) + odd(2.5F) + even(3.5F) + odd(5.0F);
}

template <Ties ties, Sign sign>
struct E2m1Codes {
  static constexpr bool is_packed = true;
  void operator()(const float* numbers, std::uint8_t* codes) const {
    std::uint32_t wide[panel_columns];
    for (std::int64_t i = 0; i < panel_columns; ++i) {
      const std::uint32_t bits = bits_of_float(numbers[i]);
      std::uint32_t is_negative = bits >> 31;
      if (sign == Sign::below_zero) is_negative = numbers[i] < 0 ? 1 : 0;
      if (sign == Sign::not_above_zero) is_negative = numbers[i] > 0 ? 0 : 1;
      wide[i] = is_negative << 3 | e2m1_magnitude<ties>(float_of_bits(bits & 0x7FFFFFFF));
    }
    for (std::int64_t i = 0; i < panel_columns; ++i) codes[i] = static_cast<std::uint8_t>(wide[i]);
  }
};

/// q + 8 of the nearest integers q from -8 to 7, ties to even; 8 for a NaN.
struct Int4Codes {
  static constexpr bool is_packed = true;
  bool is_rounded_to_bf16_first;
  void operator()(const float* numbers, std::uint8_t* codes) const {
    std::uint32_t wide[panel_columns];
    for (std::int64_t i = 0; i < panel_columns; ++i) {
      float number = numbers[i];
      if (is_rounded_to_bf16_first) {
        const std::uint32_t bits = bits_of_float(number);
        number =
            float_of_bits((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000);  // a NaN is one after that, too
      }
      // Limits that let a NaN be 0; then the last bit of 1.5 * 2^23 and more is worth 1.
      number = number == number ? number : 0.0F;
      number = number > -8.0F ? number : -8.0F;
      number = number < 7.0F ? number : 7.0F;
      wide[i] = bits_of_float(number + 0x1.8p23F) - (bits_of_float(0x1.8p23F) - 8);
    }
    for (std::int64_t i = 0; i < panel_columns; ++i) codes[i] = static_cast<std::uint8_t>(wide[i]);
  }
};

/// What MXFP8's encoder does with the scale 1.
struct E4m3Codes {
  static constexpr bool is_packed = false;
  void operator()(const float* numbers, std::uint8_t* codes) const {
    constexpr std::int64_t blocks = panel_columns / mxfp8_block_columns;
    constexpr std::array<std::uint8_t, blocks> ones = {127, 127, 127, 127};
    if (const EncodeBlocks kernel = instruction_set_in_use().encode_f32; kernel != nullptr) {
      return kernel(numbers, ones.data(), blocks, codes);
    }
    for (std::int64_t i = 0; i < panel_columns; ++i) codes[i] = e4m3_code(numbers[i]);
  }
};

/// Writes the codes of a run, from the element with this number of nibbles before it.
void write_nibbles(const std::uint8_t* codes, std::int64_t count, std::uint8_t* data, std::int64_t nibble) {
  std::int64_t i = 0;
  if (nibble % 2 != 0 && count > 0) {
    std::uint8_t& byte = data[nibble / 2];
    byte = static_cast<std::uint8_t>((byte & 0x0F) | codes[i++] << 4);
  }
  std::uint8_t* to = data + (nibble + i) / 2;
  for (; i + 2 <= count; i += 2) *to++ = static_cast<std::uint8_t>(codes[i] | codes[i + 1] << 4);
  if (i < count) *to = static_cast<std::uint8_t>((*to & 0xF0) | codes[i]);
}

template <Change change, class Codes>
void encode_each(const Codes& codes_of, const ValueTile& values, const BlockGrid& grid, const float* factors,
                 std::int64_t row_stride, const CodeTile& to) {
  alignas(64) float numbers[panel_columns] = {};
  alignas(64) std::uint8_t codes[panel_columns];
  for_each_panel(values, [&](const Panel& panel) {
    for (std::int64_t down = 0; down < panel.rows; ++down) {
      const std::int64_t row = panel.row + down;
      const float* of_row = factors + (grid.first_row + row) / grid.block_rows * row_stride;
      for_each_piece(grid, panel.column, panel.columns,
                     [&](std::int64_t block, std::int64_t begin, std::int64_t end) {
                       const float factor = of_row[block];
                       const float* from = panel.values[down];
                       for (std::int64_t i = begin - panel.column; i < end - panel.column; ++i) {
                         numbers[i] = change == Change::divide ? from[i] / factor : from[i] * factor;
                       }
                     });
      codes_of(numbers, codes);
      auto* data = static_cast<std::uint8_t*>(to.data);
      const std::int64_t place = row * to.row_stride + panel.column;
      if (Codes::is_packed) {
        write_nibbles(codes, panel.columns, data, place + (to.begins_in_high_nibble ? 1 : 0));
      } else {
        std::memcpy(data + place, codes, static_cast<std::size_t>(panel.columns));
      }
    }
  });
}

/// What decode() multiplies elements by, for each of rows x columns scales.
std::vector<float> factors_of(DType element, const BlockScales& scales, std::int64_t rows,
                              std::int64_t columns) {
  const Scaling scaling = scaling_of(element, scales, bits_of_float(scales.global));
  const auto bytes = static_cast<std::size_t>(bytes_of(scales.dtype));
  std::vector<float> factors;
  factors.reserve(static_cast<std::size_t>(rows * columns));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t column = 0; column < columns; ++column) {
      const auto index = static_cast<std::size_t>(row * scales.row_stride + column);
      std::uint64_t bits = 0;
      std::memcpy(&bits, static_cast<const std::byte*>(scales.data) + index * bytes, bytes);
      factors.push_back(
          float_of_bits(static_cast<std::uint32_t>(nearest<float32>(exact_factor(scaling, bits)))));
    }
  }
  return factors;
}

void expect_encodable(DType values, std::string_view as) {
  if (can_encode(values)) return;
  throw std::invalid_argument("cannot encode " + std::string(name_of(values)) + " values as " +
                              std::string(as) + "; expected BF16, F16 or F32");
}

void expect_finite(float magnitude, EncodingRule rule) {
  if (std::isfinite(magnitude)) return;
  throw std::invalid_argument("cannot encode values whose largest magnitude is " + std::to_string(magnitude) +
                              " as " + std::string(format_of(rule).name) + "; expected finite values");
}

}  // namespace

const EncodedFormat& format_of(EncodingRule rule) { return formats[static_cast<std::size_t>(rule)]; }

std::optional<EncodingRule> encoding_rule_named(std::string_view name) {
  for (const EncodedFormat& format : formats) {
    if (format.name == name) return format.rule;
  }
  return std::nullopt;
}

float larger_magnitude(float a, float b) {
  // Bits of magnitudes compare as the magnitudes do, and those of NaN are the largest.
  return float_of_bits(std::max(magnitude_bits(a), magnitude_bits(b)));
}

void find_magnitudes(const ValueTile& values, const BlockGrid& grid, float* magnitudes,
                     std::int64_t row_stride, bool leaves_out_nan) {
  constexpr std::uint32_t infinity = 0x7F800000;
  expect_encodable(values.dtype, "blocks");
  if (values.rows <= 0 || values.columns <= 0) return;
  const std::int64_t last_row = (grid.first_row + values.rows - 1) / grid.block_rows;
  const std::int64_t block_count = (grid.first_column + values.columns - 1) / grid.block_columns + 1;
  for (std::int64_t row = 0; row <= last_row; ++row) {
    std::fill_n(magnitudes + row * row_stride, block_count, 0.0F);
  }
  for_each_panel(values, [&](const Panel& panel) {
    for (std::int64_t down = 0; down < panel.rows; ++down) {
      float* of_row = magnitudes + (grid.first_row + panel.row + down) / grid.block_rows * row_stride;
      for_each_piece(
          grid, panel.column, panel.columns, [&](std::int64_t block, std::int64_t begin, std::int64_t end) {
            std::uint32_t largest = 0;
            for (std::int64_t column = begin - panel.column; column < end - panel.column; ++column) {
              const std::uint32_t bits = magnitude_bits(panel.values[down][column]);
              if (!leaves_out_nan || bits <= infinity) largest = std::max(largest, bits);
            }
            of_row[block] = larger_magnitude(of_row[block], float_of_bits(largest));
          });
    }
  });
}

float global_scale(EncodingRule rule, DType values, float largest) {
  expect_encodable(values, format_of(rule).name);
  expect_finite(largest, rule);
  const DefaultFloatingPointMode mode;
  if (rule == EncodingRule::nvfp4_modelopt) return largest / 2688.0F;
  if (rule != EncodingRule::nvfp4_compressed_tensors) return 1;
  const float reciprocal = in_dtype(values, 1.0F / std::max(largest, smallest_normal(values)));
  const float global = in_dtype(values, reciprocal * 2688.0F);
  return std::isfinite(global) ? global : 1.0F;
}

void scales_of_magnitudes(EncodingRule rule, DType values, const float* magnitudes, std::int64_t count,
                          float global, void* scales, float* factors) {
  expect_encodable(values, format_of(rule).name);
  const DefaultFloatingPointMode mode;
  const auto bytes = static_cast<std::size_t>(bytes_of(format_of(rule).scale));
  for (std::int64_t i = 0; i < count; ++i) {
    if (rule != EncodingRule::mxfp8) expect_finite(magnitudes[i], rule);
    const Scale scale = scale_of(rule, values, magnitudes[i], global);
    std::memcpy(static_cast<std::byte*>(scales) + static_cast<std::size_t>(i) * bytes, &scale.stored, bytes);
    factors[i] = scale.factor;
  }
}

void encode_elements(EncodingRule rule, const ValueTile& values, const BlockGrid& grid, const float* factors,
                     std::int64_t row_stride, const CodeTile& codes) {
  expect_encodable(values.dtype, format_of(rule).name);
  const DefaultFloatingPointMode mode;
  switch (rule) {
    case EncodingRule::mxfp8:
    case EncodingRule::block_fp8:
      return encode_each<Change::multiply>(E4m3Codes{}, values, grid, factors, row_stride, codes);
    case EncodingRule::mxfp4_modelopt:
      return encode_each<Change::divide>(E2m1Codes<Ties::down, Sign::not_above_zero>{}, values, grid, factors,
                                         row_stride, codes);
    case EncodingRule::mxfp4_gpt_oss:
      return encode_each<Change::multiply>(E2m1Codes<Ties::up, Sign::as_it_is>{}, values, grid, factors,
                                           row_stride, codes);
    case EncodingRule::mxfp4_ocp:
    case EncodingRule::nvfp4_modelopt:
    case EncodingRule::nvfp4_compressed_tensors:
      return encode_each<Change::divide>(E2m1Codes<Ties::to_even, Sign::below_zero>{}, values, grid, factors,
                                         row_stride, codes);
    case EncodingRule::int4_compressed_tensors:
      return encode_each<Change::divide>(Int4Codes{values.dtype == DType::BF16}, values, grid, factors,
                                         row_stride, codes);
  }
}

void encode_with_scales(DType element, const ValueTile& values, const BlockScales& scales,
                        const CodeTile& codes) {
  expect_encodable(values.dtype, name_of(element));
  expect_decodable(element, scales);
  if (values.rows <= 0 || values.columns <= 0) return;
  const DefaultFloatingPointMode mode;
  const BlockGrid grid{scales.block_rows, scales.block_columns, scales.first_row, scales.first_column};
  const std::int64_t rows = (grid.first_row + values.rows - 1) / grid.block_rows + 1;
  const std::int64_t columns = (grid.first_column + values.columns - 1) / grid.block_columns + 1;
  const std::vector<float> factors = factors_of(element, scales, rows, columns);
  switch (element) {
    case DType::F8_E4M3:
      return encode_each<Change::divide>(E4m3Codes{}, values, grid, factors.data(), columns, codes);
    case DType::F4:
      return encode_each<Change::divide>(E2m1Codes<Ties::to_even, Sign::as_it_is>{}, values, grid,
                                         factors.data(), columns, codes);
    case DType::I4:
      return encode_each<Change::divide>(Int4Codes{false}, values, grid, factors.data(), columns, codes);
    default:
      throw std::invalid_argument("cannot encode " + std::string(name_of(element)) +
                                  " elements with scales; expected F8_E4M3, F4 or I4");
  }
}

}  // namespace shardwright
