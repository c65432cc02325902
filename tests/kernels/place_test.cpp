#include <gtest/gtest.h>

#include <stdexcept>

#include "kernels/decode.h"
#include "slow_definition.h"
#include "tiles.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace shardwright {
namespace {

const std::vector<DType> wide_floats = {DType::BF16, DType::F16, DType::F32, DType::F64};

class Place : public EveryInstructionSet {};
INSTANTIATE_TEST_SUITE_P(Each, Place, testing::ValuesIn(instruction_sets()), name_of_parameter);

/// Converts the values, straight and transposed, and expects what the slow definition says.
void expect_converted(DType from, const std::vector<std::uint64_t>& values) {
  constexpr std::int64_t columns = 64;
  const std::int64_t rows = (static_cast<std::int64_t>(values.size()) + columns - 1) / columns;
  std::vector<std::uint64_t> source(static_cast<std::size_t>(rows * columns));
  std::vector<std::uint64_t> memory(source.size());
  for (std::size_t index = 0; index < values.size(); ++index) {
    slow::store(source.data(), static_cast<std::int64_t>(index), from, values[index]);
  }
  for (const DType to : wide_floats) {
    if (to == from) continue;
    std::vector<std::uint64_t> expected;
    for (const std::uint64_t value : values) expected.push_back(slow::converted(from, to, value));
    for (const bool transposed : {false, true}) {
      const DestinationTile destination{memory.data(), to, transposed ? 1 : columns, transposed ? rows : 1};
      place({source.data(), from, rows, columns, columns}, destination);
      for (std::size_t index = 0; index < values.size(); ++index) {
        const auto row = static_cast<std::int64_t>(index) / columns;
        const auto column = static_cast<std::int64_t>(index) % columns;
        ASSERT_EQ(
            slow::load(memory.data(), row * destination.row_stride + column * destination.column_stride, to),
            expected[index])
            << std::hex << values[index] << " of " << name_of(from) << " to " << name_of(to)
            << (transposed ? ", transposed" : ", straight");
      }
    }
  }
}

std::vector<std::uint64_t> every_value(int bits) {
  std::vector<std::uint64_t> values(std::size_t{1} << bits);
  for (std::size_t index = 0; index < values.size(); ++index) values[index] = index;
  return values;
}

/// All upper halves (sign, exponent, first bits of the mantissa) with lower bits on, below and above every
/// tie.
std::vector<std::uint64_t> f32_values_around_ties() {
  std::vector<std::uint64_t> values;
  for (std::uint64_t upper = 0; upper < 0x10000; ++upper) {
    for (const std::uint64_t lower :
         {0x0000, 0x0001, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF}) {
      values.push_back(upper << 16 | lower);
    }
  }
  return values;
}

/// Ties of BF16 (45 bits are dropped), F16 (42) and F32 (29), and what a first rounding to F32 would turn
/// into ties.
std::vector<std::uint64_t> f64_values_around_ties() {
  std::vector<std::uint64_t> values;
  for (std::uint64_t upper = 0; upper < 0x10000; upper += 3) {
    for (const int dropped : {45, 42, 29}) {
      const std::uint64_t tie = std::uint64_t{1} << (dropped - 1);
      for (const std::uint64_t lower : {tie - 1, tie, tie + 1, 3 * tie - 1, 3 * tie, 3 * tie + 1}) {
        values.push_back(upper << 48 | lower);
      }
    }
  }
  // The whole range of F32 and F16 lies between these exponents, subnormals included.
  Random random(7);
  for (std::uint64_t exponent = 1023 - 155; exponent < 1023 + 130; ++exponent) {
    for (int round = 0; round < 300; ++round) {
      std::uint64_t mantissa = static_cast<std::uint64_t>(random.number(0, (std::int64_t{1} << 52) - 1));
      const auto zeros = static_cast<unsigned>(random.number(0, 52));
      mantissa = mantissa >> zeros << zeros;
      if (random.chance(3)) mantissa += static_cast<std::uint64_t>(random.number(0, 1));
      mantissa &= (std::uint64_t{1} << 52) - 1;
      values.push_back(static_cast<std::uint64_t>(random.number(0, 1)) << 63 | exponent << 52 | mantissa);
    }
  }
  return values;
}

TEST_P(Place, RoundsEveryF8ValueAsTheDefinitionDoes) {
  expect_converted(DType::F8_E4M3, every_value(8));
  expect_converted(DType::F8_E5M2, every_value(8));
}

TEST_P(Place, RoundsEveryBF16ValueAsTheDefinitionDoes) { expect_converted(DType::BF16, every_value(16)); }

TEST_P(Place, RoundsEveryF16ValueAsTheDefinitionDoes) { expect_converted(DType::F16, every_value(16)); }

TEST_P(Place, RoundsF32ValuesAroundTiesToEven) { expect_converted(DType::F32, f32_values_around_ties()); }

TEST_P(Place, RoundsF64ValuesOnlyOnce) { expect_converted(DType::F64, f64_values_around_ties()); }

#if defined(__x86_64__)
TEST_P(Place, DoesNotDependOnTheCallersFloatingPointMode) {
  const unsigned before = _mm_getcsr();
  for (const unsigned rounding : {0x0000U, 0x2000U, 0x4000U, 0x6000U}) {
    _mm_setcsr((before & ~0x6000U) | 0x8040U | rounding);  // FTZ, DAZ and a rounding mode; x87 has its own
    expect_converted(DType::BF16, every_value(16));
    expect_converted(DType::F16, every_value(16));
    _mm_setcsr(before);
  }
}
#endif

void expect_same_as_slow(Random& random, DType from, DType to, std::int64_t rows, std::int64_t columns,
                         Strides strides) {
  const RandomSource source(random, from, rows, columns);
  RandomDestination destination(random, to, rows, columns, strides);
  RandomDestination expected = destination;
  slow::place(source.tile, expected.tile);
  place(source.tile, destination.tile);
  ASSERT_TRUE(destination.memory == expected.memory) << description(source.tile, destination.tile);
}

TEST_P(Place, WritesEachElementOfAnyTileToItsPlaceAndNothingElse) {
  const std::vector<DType> sources = {DType::BF16, DType::F16,     DType::F32,     DType::F64, DType::BOOL,
                                      DType::U8,   DType::F8_E4M3, DType::F8_E5M2, DType::I16, DType::I32,
                                      DType::I64,  DType::C64,     DType::F8_E8M0};
  Random random(4);
  for (int round = 0; round < 1500; ++round) {
    const DType from = random.one_of(sources);
    DType to = random.one_of(wide_floats);
    if (!can_convert(from, to) || random.chance(3)) to = from;
    const Strides strides = random.one_of<Strides>({Strides::straight, Strides::transposed, Strides::any});
    const std::int64_t longest = random.one_of<std::int64_t>({40, 200});
    expect_same_as_slow(random, from, to, random.number(0, longest), random.number(0, longest), strides);
    if (HasFatalFailure()) return;
  }
}

TEST_P(Place, WritesTilesLargeEnoughToBeStreamedToTheirPlaceAndNothingElse) {
  Random random(5);
  for (const DType from : {DType::U8, DType::BF16, DType::F32, DType::F64}) {
    for (const DType to : {from, DType::BF16, DType::F32}) {
      if (!can_convert(from, to)) continue;
      for (const Strides strides : {Strides::straight, Strides::transposed}) {
        expect_same_as_slow(random, from, to, random.number(300, 600), random.number(300, 600), strides);
        if (HasFatalFailure()) return;
      }
    }
  }
}

/// More than a second-level cache holds, where panels have another shape.
TEST_P(Place, WritesTransposedTilesThatNoCacheHoldsToTheirPlaceAndNothingElse) {
  Random random(6);
  for (const DType from : {DType::U8, DType::BF16, DType::F32, DType::F64}) {
    const std::int64_t elements = (std::int64_t{7} << 18) / bytes_of(from);
    for (const DType to : {from, DType::BF16}) {
      if (!can_convert(from, to)) continue;
      const std::int64_t rows = random.number(300, 2000);
      expect_same_as_slow(random, from, to, rows, elements / rows + random.number(0, 70),
                          Strides::transposed);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(Place, CopiesEveryBitOfNaNsWhoseDtypeStaysTheSame) {
  std::vector<std::uint16_t> source(100, 0xFFA1);
  std::vector<std::uint16_t> destination(100);
  place({source.data(), DType::BF16, 1, 100, 100}, {destination.data(), DType::BF16, 100, 1});
  EXPECT_EQ(destination, source);
}

TEST_P(Place, CopiesPackedFormatsByWholeBytesAndRefusesToSplitOne) {
  const std::vector<std::uint8_t> source = {1, 2, 3, 4, 5, 6};
  std::vector<std::uint8_t> destination(6);
  place({source.data(), DType::F4, 2, 4, 6}, {destination.data(), DType::F4, 4, 1});
  EXPECT_EQ(destination, (std::vector<std::uint8_t>{1, 2, 4, 5, 0, 0}));
  place({source.data(), DType::F6_E2M3, 1, 8, 8}, {destination.data(), DType::F6_E2M3, 8, 1});
  EXPECT_EQ(destination, source);
  EXPECT_THROW(place({source.data(), DType::F4, 2, 3, 6}, {destination.data(), DType::F4, 4, 1}),
               std::invalid_argument);
  EXPECT_THROW(place({source.data(), DType::F4, 2, 4, 6}, {destination.data(), DType::F4, 4, 2}),
               std::invalid_argument);
}

TEST_P(Place, RefusesConversionsThatDoNotExist) {
  std::uint64_t memory[4] = {};
  EXPECT_THROW(place({memory, DType::I32, 1, 1, 1}, {memory + 2, DType::BF16, 1, 1}), std::invalid_argument);
  EXPECT_THROW(place({memory, DType::BF16, 1, 1, 1}, {memory + 2, DType::F8_E4M3, 1, 1}),
               std::invalid_argument);
  EXPECT_THROW(place({memory, DType::F4, 1, 2, 2}, {memory + 2, DType::BF16, 1, 1}), std::invalid_argument);
}

TEST(CanConvert, EqualDtypesAndFloatsIntoWideFloats) {
  EXPECT_TRUE(can_convert(DType::I64, DType::I64));
  EXPECT_TRUE(can_convert(DType::F4, DType::F4));
  EXPECT_TRUE(can_convert(DType::F8_E4M3, DType::BF16));
  EXPECT_TRUE(can_convert(DType::F8_E5M2, DType::F64));
  EXPECT_TRUE(can_convert(DType::F64, DType::F16));
  EXPECT_FALSE(can_convert(DType::F8_E8M0, DType::F32));
  EXPECT_FALSE(can_convert(DType::BF16, DType::F8_E4M3));
  EXPECT_FALSE(can_convert(DType::I32, DType::F32));
  EXPECT_FALSE(can_convert(DType::F32, DType::I32));
}

}  // namespace
}  // namespace shardwright
