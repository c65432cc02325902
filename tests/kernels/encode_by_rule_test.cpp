#include <gtest/gtest.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>

#include "kernels/encode.h"
#include "slow_rules.h"
#include "tiles.h"

namespace shardwright {
namespace {

const std::vector<EncodingRule> rules = {
    EncodingRule::mxfp8,
    EncodingRule::block_fp8,
    EncodingRule::mxfp4_modelopt,
    EncodingRule::mxfp4_ocp,
    EncodingRule::mxfp4_gpt_oss,
    EncodingRule::nvfp4_modelopt,
    EncodingRule::nvfp4_compressed_tensors,
    EncodingRule::int4_compressed_tensors,
};

class EncodeByRule : public EveryInstructionSet {};
INSTANTIATE_TEST_SUITE_P(Each, EncodeByRule, testing::ValuesIn(instruction_sets()), name_of_parameter);

/// A tensor of values of all kinds of magnitudes: many of them, times the likely scales, halfway between two
/// codes; blocks of zeros, negative zeros.
struct Values {
  RandomDestination memory;
  std::int64_t rows;
  std::int64_t columns;
  DType dtype;

  Values(Random& random, DType value_dtype, std::int64_t row_count, std::int64_t column_count)
      : memory(random, value_dtype, row_count, column_count,
               random.one_of<Strides>({Strides::straight, Strides::transposed, Strides::any})),
        rows(row_count),
        columns(column_count),
        dtype(value_dtype) {
    const int around =
        static_cast<int>(random.number(dtype == DType::F16 ? -8 : -60, dtype == DType::F16 ? 8 : 60));
    const std::int64_t zeros_from = random.number(0, columns);
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t column = 0; column < columns; ++column) {
        long double value = 0;
        if (random.chance(2)) {
          value = std::ldexp(static_cast<long double>(random.number(0, 56)) / 8,
                             around - static_cast<int>(random.number(0, 3)));
        } else {
          value = std::ldexp(static_cast<long double>(random.number(0, 1 << 24)),
                             around - 24 - static_cast<int>(random.number(0, 12)));
        }
        if (random.chance(20) || (column >= zeros_from && column < zeros_from + 70 && row % 3 == 0))
          value = 0;
        if (random.chance(2)) value = -value;
        set(row, column, value);
      }
    }
  }

  void set(std::int64_t row, std::int64_t column, long double value) {
    slow::store(memory.tile.data, row * memory.tile.row_stride + column * memory.tile.column_stride, dtype,
                slow::rounded(dtype, value));
  }
  long double at(std::int64_t row, std::int64_t column) const {
    return slow::value_of(
        dtype, slow::load(memory.tile.data, row * memory.tile.row_stride + column * memory.tile.column_stride,
                          dtype));
  }
  ValueTile part(std::int64_t row, std::int64_t row_count, std::int64_t column,
                 std::int64_t column_count) const {
    return {static_cast<const std::uint8_t*>(memory.tile.data) +
                (row * memory.tile.row_stride + column * memory.tile.column_stride) * bytes_of(dtype),
            dtype,
            row_count,
            column_count,
            memory.tile.row_stride,
            memory.tile.column_stride};
  }
};

struct Encoded {
  float global = 1;
  std::int64_t block_columns = 0;  ///< blocks beside each other
  std::vector<std::uint8_t> scales;
  std::int64_t row_stride = 0;  ///< elements
  std::vector<std::uint8_t> codes;
};

/// Nothing in them yet.
Encoded room_for(const Values& values, const EncodedFormat& format) {
  Encoded encoded;
  const std::int64_t blocks_down = (values.rows + format.block_rows - 1) / format.block_rows;
  encoded.block_columns = (values.columns + format.block_columns - 1) / format.block_columns;
  encoded.scales.resize(
      static_cast<std::size_t>(blocks_down * encoded.block_columns * bytes_of(format.scale)));
  encoded.row_stride = (values.columns + 1) / 2 * 2;
  encoded.codes.resize(
      static_cast<std::size_t>(values.rows * encoded.row_stride * bits_of(format.element) / 8));
  return encoded;
}

Encoded slowly_encoded(const Values& values, const EncodedFormat& format) {
  Encoded encoded = room_for(values, format);
  long double largest = 0;
  for (std::int64_t row = 0; row < values.rows; ++row) {
    for (std::int64_t column = 0; column < values.columns; ++column) {
      largest = std::max(largest, std::fabs(values.at(row, column)));
    }
  }
  const long double global = slow::global_of(format.rule, values.dtype, largest);
  encoded.global = static_cast<float>(global);
  for (std::int64_t top = 0; top < values.rows; top += format.block_rows) {
    for (std::int64_t left = 0; left < values.columns; left += format.block_columns) {
      std::vector<long double> of_block;
      long double magnitude = 0;
      const std::int64_t bottom = std::min(values.rows, top + format.block_rows);
      const std::int64_t right = std::min(values.columns, left + format.block_columns);
      for (std::int64_t row = top; row < bottom; ++row) {
        for (std::int64_t column = left; column < right; ++column) {
          of_block.push_back(values.at(row, column));
          magnitude = std::max(magnitude, std::fabs(of_block.back()));
        }
      }
      const slow::EncodedBlock block =
          slow::encoded_block(format.rule, values.dtype, of_block, magnitude, global);
      slow::store(encoded.scales.data(),
                  top / format.block_rows * encoded.block_columns + left / format.block_columns, format.scale,
                  block.scale);
      for (std::size_t i = 0; i < block.codes.size(); ++i) {
        const std::int64_t row = top + static_cast<std::int64_t>(i) / (right - left);
        const std::int64_t column = left + static_cast<std::int64_t>(i) % (right - left);
        slow::store(encoded.codes.data(), row * encoded.row_stride + column, format.element, block.codes[i]);
      }
    }
  }
  return encoded;
}

/// Encodes a tensor tile by tile, cut at these rows and columns, as several who share blocks would.
Encoded encoded_in_tiles(const Values& values, const EncodedFormat& format,
                         const std::vector<std::int64_t>& row_cuts,
                         const std::vector<std::int64_t>& column_cuts) {
  Encoded encoded = room_for(values, format);
  const std::int64_t blocks_down = (values.rows + format.block_rows - 1) / format.block_rows;
  const auto block_count = static_cast<std::size_t>(blocks_down * encoded.block_columns);
  std::vector<float> magnitudes(block_count);
  const auto for_each_tile = [&](auto use) {
    for (std::size_t i = 0; i + 1 < row_cuts.size(); ++i) {
      for (std::size_t j = 0; j + 1 < column_cuts.size(); ++j) {
        const std::int64_t row = row_cuts[i];
        const std::int64_t column = column_cuts[j];
        use(values.part(row, row_cuts[i + 1] - row, column, column_cuts[j + 1] - column),
            BlockGrid{format.block_rows, format.block_columns, row % format.block_rows,
                      column % format.block_columns},
            row, column, row / format.block_rows * encoded.block_columns + column / format.block_columns);
      }
    }
  };
  for_each_tile(
      [&](const ValueTile& tile, const BlockGrid& grid, std::int64_t, std::int64_t, std::int64_t first) {
        const std::int64_t down = (grid.first_row + tile.rows - 1) / grid.block_rows + 1;
        const std::int64_t across = (grid.first_column + tile.columns - 1) / grid.block_columns + 1;
        std::vector<float> own(static_cast<std::size_t>(down * across), -1.0F);
        find_magnitudes(tile, grid, own.data(), across);
        for (std::int64_t i = 0; i < down * across; ++i) {
          float& whole =
              magnitudes[static_cast<std::size_t>(first + i / across * encoded.block_columns + i % across)];
          whole = larger_magnitude(whole, own[static_cast<std::size_t>(i)]);
        }
      });
  float largest = 0;
  for (const float magnitude : magnitudes) largest = larger_magnitude(largest, magnitude);
  encoded.global = global_scale(format.rule, values.dtype, largest);
  std::vector<float> factors(block_count);
  scales_of_magnitudes(format.rule, values.dtype, magnitudes.data(), static_cast<std::int64_t>(block_count),
                       encoded.global, encoded.scales.data(), factors.data());
  for_each_tile([&](const ValueTile& tile, const BlockGrid& grid, std::int64_t row, std::int64_t column,
                    std::int64_t first) {
    const std::int64_t bit = (row * encoded.row_stride + column) * bits_of(format.element);
    encode_elements(format.rule, tile, grid, factors.data() + first, encoded.block_columns,
                    {encoded.codes.data() + bit / 8, encoded.row_stride, bit % 8 != 0});
  });
  return encoded;
}

std::vector<std::int64_t> random_cuts(Random& random, std::int64_t length) {
  std::vector<std::int64_t> cuts = {0, length};
  for (std::int64_t count = random.number(0, 3); count > 0; --count) cuts.push_back(random.number(0, length));
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  return cuts;
}

TEST_P(EncodeByRule, EqualsTheRuleWrittenInAnotherWayForTensorsCutIntoAnyTiles) {
  Random random(1);
  for (const EncodingRule rule : rules) {
    const EncodedFormat& format = format_of(rule);
    for (const DType dtype : {DType::BF16, DType::F16, DType::F32}) {
      for (int round = 0; round < 5; ++round) {
        const std::int64_t longest = random.one_of<std::int64_t>({5, 70, 200});
        const Values values(random, dtype, random.number(1, longest), random.number(1, longest));
        const Encoded expected = slowly_encoded(values, format);
        const Encoded found = encoded_in_tiles(values, format, random_cuts(random, values.rows),
                                               random_cuts(random, values.columns));
        ASSERT_EQ(found.global, expected.global) << format.name << " of " << name_of(dtype);
        ASSERT_TRUE(found.scales == expected.scales) << format.name << " of " << name_of(dtype);
        ASSERT_TRUE(found.codes == expected.codes)
            << format.name << " of " << name_of(dtype) << ", " << values.rows << " x " << values.columns;
      }
    }
  }
}

/// Every code with every scale byte, or e4m3 or BF16 scale, that is positive and not too extreme for BF16.
TEST_P(EncodeByRule, WhatWasDecodedBecomesTheSameCodesAgainWithItsScales) {
  for (const Format& format : formats) {
    const bool is_wide = bits_of(format.element) > 8 || format.element == DType::F8_E5M2;
    if (is_wide || format.block_columns > 128 || bits_of(format.scale) == 32) continue;
    const std::int64_t codes_in_row = std::int64_t{1} << bits_of(format.element);
    const std::int64_t columns = std::max<std::int64_t>(format.block_columns, codes_in_row);
    for (std::uint64_t scale = 1; scale < std::uint64_t{1} << bits_of(format.scale);
         scale += bits_of(format.scale) == 16 ? 37 : 1) {
      const long double factor = slow::is_e8m0(format.scale) ? std::ldexp(1.0L, static_cast<int>(scale) - 127)
                                                             : slow::value_of(format.scale, scale);
      if (!(factor > 0x1p-90L && factor < 0x1p90L)) continue;
      std::vector<std::uint8_t> codes(static_cast<std::size_t>(columns * bits_of(format.element) / 8));
      for (std::int64_t column = 0; column < columns; ++column) {
        slow::store(codes.data(), column, format.element, static_cast<std::uint64_t>(column % codes_in_row));
      }
      std::vector<std::uint8_t> scales(static_cast<std::size_t>(columns / 16 * bytes_of(format.scale)));
      for (std::int64_t i = 0; i < columns / 16; ++i) slow::store(scales.data(), i, format.scale, scale);
      const BlockScales block_scales = format.block_scales(scales.data(), columns / format.block_columns);
      for (const DType dtype : {DType::BF16, DType::F32}) {
        std::vector<float> values(static_cast<std::size_t>(columns));
        decode({codes.data(), format.element, 1, columns, columns}, block_scales,
               {values.data(), dtype, columns, 1});
        std::vector<std::uint8_t> again(codes.size());
        encode_with_scales(format.element, {values.data(), dtype, 1, columns, columns, 1}, block_scales,
                           {again.data(), columns, false});
        for (std::int64_t column = 0; column < columns; ++column) {
          const std::int64_t code = column % codes_in_row;
          const bool is_lost = format.element == DType::F4 && code == 8 &&
                               (format.code_eight_is_plus_zero || format.product == Product::modelopt_nvfp4);
          ASSERT_EQ(slow::element_of({again.data(), format.element, 1, columns, columns}, 0, column),
                    is_lost ? 0U : static_cast<std::uint64_t>(code))
              << format.name() << ", scale " << scale << " by way of " << name_of(dtype);
        }
      }
    }
  }
}

#if defined(__x86_64__)
TEST_P(EncodeByRule, DoesNotDependOnTheCallersFloatingPointMode) {
  Random random(3);
  const unsigned before = _mm_getcsr();
  for (const DType dtype : {DType::BF16, DType::F16, DType::F32}) {
    Values values(random, dtype, 40, 200);
    for (std::int64_t column = 0; column < 200; ++column) {
      const long double small = static_cast<long double>(random.number(0, 9));
      values.set(3, column, std::ldexp(small, dtype == DType::F16 ? -24 : -133));
    }
    for (const EncodingRule rule : rules) {
      const EncodedFormat& format = format_of(rule);
      const std::vector<std::int64_t> rows = {0, 40};
      const std::vector<std::int64_t> columns = {0, 77, 200};
      const Encoded expected = encoded_in_tiles(values, format, rows, columns);
      std::vector<std::uint8_t> scales(40 * 7);
      find_scales(values.part(0, 40, 0, 200), 0, scales.data(), 7);
      for (const unsigned rounding : {0x0000U, 0x2000U, 0x4000U, 0x6000U}) {
        _mm_setcsr((before & ~0x6000U) | 0x8040U | rounding);  // FTZ, DAZ and a rounding mode
        const Encoded found = encoded_in_tiles(values, format, rows, columns);
        std::vector<std::uint8_t> scales_found(scales.size());
        find_scales(values.part(0, 40, 0, 200), 0, scales_found.data(), 7);
        _mm_setcsr(before);
        ASSERT_TRUE(found.scales == expected.scales) << format.name << " of " << name_of(dtype);
        ASSERT_TRUE(found.codes == expected.codes) << format.name << " of " << name_of(dtype);
        ASSERT_TRUE(scales_found == scales) << name_of(dtype);
      }
    }
  }
}
#endif

TEST(EncodingRules, HaveNamesByWhichTheyAreFound) {
  for (const EncodingRule rule : rules) EXPECT_EQ(encoding_rule_named(format_of(rule).name), rule);
  EXPECT_EQ(encoding_rule_named("nvfp4"), std::nullopt);
}

TEST(EncodingRules, RefuseValuesThatNoCodeStandsFor) {
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const float values[4] = {1, -bad, 2, 3};
    float magnitude = 0;
    find_magnitudes({values, DType::F32, 1, 4, 4}, {}, &magnitude, 1);
    EXPECT_FALSE(std::isfinite(magnitude));
    std::uint32_t scale = 0;
    float factor = 0;
    for (const EncodingRule rule : rules) {
      EXPECT_THROW(global_scale(rule, DType::F32, magnitude), std::invalid_argument);
      if (rule == EncodingRule::mxfp8) continue;
      EXPECT_THROW(scales_of_magnitudes(rule, DType::F32, &magnitude, 1, 1, &scale, &factor),
                   std::invalid_argument);
    }
  }
  float magnitude = 0;
  EXPECT_THROW(find_magnitudes({&magnitude, DType::I32, 1, 1, 1}, {}, &magnitude, 1), std::invalid_argument);
}

}  // namespace
}  // namespace shardwright
