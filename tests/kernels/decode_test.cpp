#include "kernels/decode.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "slow_definition.h"
#include "tiles.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace shardwright {
namespace {

const std::vector<DType> destinations = {DType::BF16, DType::F16, DType::F32, DType::F64};

class Decode : public EveryInstructionSet {};
INSTANTIATE_TEST_SUITE_P(Each, Decode, testing::ValuesIn(instruction_sets()), name_of_parameter);

/// Every e8m0 byte. Of the others both signs and every exponent (zeros, subnormals, infinities and NaN among
/// them), with mantissas all zeros and all ones, next to these, ones that make products fall halfway between
/// two F32 or two BF16 numbers, and random ones.
const std::vector<std::uint64_t>& scales_of(DType dtype) {
  static std::map<DType, std::vector<std::uint64_t>> all;
  std::vector<std::uint64_t>& scales = all[dtype];
  if (!scales.empty()) return scales;
  if (slow::is_e8m0(dtype)) {
    for (std::uint64_t scale = 0; scale < 256; ++scale) scales.push_back(scale);
    return scales;
  }
  Random random(4);
  const int mantissa_bits = slow::fields_of(dtype).mantissa_bits;
  for (std::uint64_t sign_and_exponent = 0; sign_and_exponent < 512; ++sign_and_exponent) {
    std::vector<std::uint64_t> mantissas = {0, 1, 0x7FFFFF, 0x008000, 0x018000};
    for (int i = 0; i < 2; ++i) mantissas.push_back(static_cast<std::uint64_t>(random.number(0, 0x7FFFFF)));
    for (const std::uint64_t mantissa : mantissas) {
      scales.push_back(sign_and_exponent << mantissa_bits |
                       (dtype == DType::F32 ? mantissa : mantissa >> 16));
    }
  }
  return scales;
}

/// All results, by number of the scale and element.
const std::vector<std::uint64_t>& slow_table(DType dtype, const Format& format) {
  static std::map<std::pair<DType, Format>, std::vector<std::uint64_t>> tables;
  std::vector<std::uint64_t>& table = tables[{dtype, format}];
  if (table.empty()) {
    for (const std::uint64_t scale : scales_of(format.scale)) {
      for (std::uint64_t element = 0; element < 256; ++element) {
        table.push_back(slow::decoded(dtype, format.element, element, format.scale, scale));
      }
    }
  }
  return table;
}

/// Decodes all 256 elements with one scale for each row, given by number, and expects what the table says.
void expect_table(DType dtype, const Format& format, const std::vector<std::size_t>& scale_of_row,
                  bool transposed) {
  const auto rows = static_cast<std::int64_t>(scale_of_row.size());
  constexpr std::int64_t columns = 256;
  constexpr std::int64_t blocks = columns / 32;
  std::vector<std::uint8_t> elements;
  std::vector<std::uint8_t> scales(static_cast<std::size_t>(rows * blocks * bytes_of(format.scale)));
  for (std::int64_t row = 0; row < rows; ++row) {
    for (int element = 0; element < columns; ++element)
      elements.push_back(static_cast<std::uint8_t>(element));
    for (std::int64_t block = 0; block < blocks; ++block) {
      slow::store(scales.data(), row * blocks + block, format.scale,
                  scales_of(format.scale)[scale_of_row[static_cast<std::size_t>(row)]]);
    }
  }
  std::vector<std::uint64_t> memory(elements.size());
  const std::int64_t row_stride = transposed ? 1 : columns;
  const std::int64_t column_stride = transposed ? rows : 1;
  BlockScales block_scales{scales.data(), blocks};
  block_scales.dtype = format.scale;
  decode({elements.data(), format.element, rows, columns, columns}, block_scales,
         {memory.data(), dtype, row_stride, column_stride});
  const std::vector<std::uint64_t>& table = slow_table(dtype, format);
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::size_t scale = scale_of_row[static_cast<std::size_t>(row)];
    for (std::int64_t element = 0; element < columns; ++element) {
      ASSERT_EQ(slow::load(memory.data(), row * row_stride + element * column_stride, dtype),
                table[scale * columns + static_cast<std::size_t>(element)])
          << name_of(format.element) << " element " << element << ", " << name_of(format.scale) << " scale "
          << std::hex << scales_of(format.scale)[scale] << ", to " << name_of(dtype)
          << (transposed ? ", transposed" : ", straight");
    }
  }
}

void expect_table_for_all_scales() {
  for (const Format& format : formats) {
    std::vector<std::size_t> every_scale(scales_of(format.scale).size());
    std::iota(every_scale.begin(), every_scale.end(), std::size_t{0});
    for (const DType dtype : destinations) {
      for (const bool transposed : {false, true}) {
        expect_table(dtype, format, every_scale, transposed);
        if (format.element != DType::F8_E4M3 || !slow::is_e8m0(format.scale)) continue;
        // Which kernel serves depends on the scales of a run: alone, each has its own.
        for (const std::size_t scale : every_scale) {
          expect_table(dtype, format, std::vector<std::size_t>(65, scale), transposed);
        }
      }
    }
  }
}

TEST_P(Decode, EqualsTheDefinitionForEveryElementAndScale) { expect_table_for_all_scales(); }

#if defined(__x86_64__)
TEST_P(Decode, DoesNotDependOnTheCallersFloatingPointMode) {
  for (const DType dtype : destinations) {
    for (const Format& format : formats) slow_table(dtype, format);  // not under the mode in question
  }
  const unsigned before = _mm_getcsr();
  constexpr unsigned flush_to_zero = 0x8000;
  constexpr unsigned denormals_are_zero = 0x0040;
  for (const unsigned rounding : {0x0000U, 0x2000U, 0x4000U, 0x6000U}) {
    _mm_setcsr((before & ~0x6000U) | flush_to_zero | denormals_are_zero | rounding);
    const unsigned during = _mm_getcsr();
    expect_table_for_all_scales();
    constexpr unsigned exceptions = 0x3F;  // that have come up: no part of the mode
    EXPECT_EQ(_mm_getcsr() & ~exceptions, during & ~exceptions);
    _mm_setcsr(before);
  }
}
#endif

void expect_same_as_slow(Random& random, std::int64_t rows, std::int64_t columns, Strides strides) {
  const Format format = random.one_of(formats);
  const RandomSource source(random, format.element, rows, columns);
  const RandomScales scales(random, format.scale, rows, columns);
  RandomDestination destination(random, random.one_of(destinations), rows, columns, strides);
  RandomDestination expected = destination;
  slow::decode(source.tile, scales.scales, expected.tile);
  decode(source.tile, scales.scales, destination.tile);
  // The whole memory: what lies around the tile and between its elements has not changed.
  ASSERT_TRUE(destination.memory == expected.memory)
      << description(source.tile, destination.tile) << ", " << name_of(format.scale) << " for blocks of "
      << scales.scales.block_rows << " x " << scales.scales.block_columns << " from "
      << scales.scales.first_row << ", " << scales.scales.first_column;
}

TEST_P(Decode, WritesEachElementOfAnyTileToItsPlaceAndNothingElse) {
  Random random(1);
  for (int round = 0; round < 1500; ++round) {
    const Strides strides = random.one_of<Strides>({Strides::straight, Strides::transposed, Strides::any});
    const std::int64_t longest = random.one_of<std::int64_t>({40, 200});
    expect_same_as_slow(random, random.number(0, longest), random.number(0, longest), strides);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Decode, WritesTilesLargeEnoughToBeStreamedToTheirPlaceAndNothingElse) {
  Random random(2);
  for (int round = 0; round < 12; ++round) {
    const Strides strides = round % 2 == 0 ? Strides::straight : Strides::transposed;
    expect_same_as_slow(random, random.number(200, 800), random.number(200, 800), strides);
    if (HasFatalFailure()) return;
  }
  expect_same_as_slow(random, 20, 2048 + 5, Strides::straight);
  expect_same_as_slow(random, 9, 2 * 2048 + 40, Strides::straight);
  expect_same_as_slow(random, 256 + 3, 130, Strides::transposed);
  expect_same_as_slow(random, 2 * 256 + 31, 130, Strides::transposed);
}

TEST_P(Decode, ReadsNothingOutsideTheTileAndItsScales) {
  Random random(3);
  for (const auto& [rows, columns] : {std::pair<std::int64_t, std::int64_t>{1, 1},
                                      {1, 33},
                                      {33, 1},
                                      {70, 70},
                                      {64, 64},
                                      {15, 129},
                                      {129, 15},
                                      {300, 100},
                                      {3, 2049}}) {
    for (const Strides strides : {Strides::straight, Strides::transposed, Strides::any}) {
      for (const bool at_end : {false, true}) {
        const Format format = random.one_of(formats);
        const std::int64_t blocks = (columns + 31) / 32;
        const std::int64_t scale_bytes = rows * blocks * bytes_of(format.scale);
        BetweenGuards elements(static_cast<std::size_t>(rows * columns));
        BetweenGuards scales(static_cast<std::size_t>(scale_bytes));
        const SourceTile source{at_end ? elements.end() - rows * columns : elements.begin(), format.element,
                                rows, columns, columns};
        std::memset(scales.begin(), 120, static_cast<std::size_t>(scales.end() - scales.begin()));
        BlockScales block_scales{at_end ? scales.end() - scale_bytes : scales.begin(), blocks};
        block_scales.dtype = format.scale;
        const RandomDestination destination(random, DType::BF16, rows, columns, strides);
        decode(source, block_scales, destination.tile);  // or the process dies
      }
    }
  }
}

TEST_P(Decode, RefusesFormatsThatHaveNoBlockScalesAndDestinationsThatAreNoWideFloats) {
  std::uint8_t memory[16] = {};
  const auto try_to_decode = [&](DType element, DType scale, DType destination) {
    decode({memory, element, 1, 1, 1}, {memory, 1, 1, 32, 0, 0, scale}, {memory + 8, destination, 1, 1});
  };
  EXPECT_NO_THROW(try_to_decode(DType::F8_E4M3, DType::U8, DType::BF16));
  EXPECT_THROW(try_to_decode(DType::BF16, DType::U8, DType::BF16), std::invalid_argument);
  EXPECT_THROW(try_to_decode(DType::F8_E4M3, DType::F16, DType::BF16), std::invalid_argument);
  EXPECT_THROW(try_to_decode(DType::F8_E4M3, DType::U8, DType::I32), std::invalid_argument);
  EXPECT_THROW(try_to_decode(DType::F8_E4M3, DType::F32, DType::I32), std::invalid_argument);
}

}  // namespace
}  // namespace shardwright
