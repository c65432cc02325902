#include "kernels/encode.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "kernels/decode.h"
#include "slow_encoding.h"
#include "tiles.h"

namespace shardwright {
namespace {

constexpr std::int64_t block = 32;
const std::vector<DType> sources = {DType::BF16, DType::F16, DType::F32};

class Encode : public EveryInstructionSet {};
INSTANTIATE_TEST_SUITE_P(Each, Encode, testing::ValuesIn(instruction_sets()), name_of_parameter);

struct Encoded {
  std::vector<std::uint8_t> elements;  ///< rows x columns
  std::vector<std::uint8_t> scales;    ///< rows x blocks
  std::int64_t blocks = 0;
};

std::int64_t blocks_of(std::int64_t first_column, std::int64_t columns) {
  return (first_column + columns + block - 1) / block;
}

Encoded fast(const ValueTile& values, std::int64_t first_column = 0, const SharedScales& shared = {}) {
  Encoded result;
  result.blocks = blocks_of(first_column, values.columns);
  result.elements.assign(static_cast<std::size_t>(values.rows * values.columns), 0x55);
  result.scales.assign(static_cast<std::size_t>(values.rows * result.blocks), 0x55);
  encode(values, first_column, shared,
         {result.elements.data(), values.columns, result.scales.data(), result.blocks});
  return result;
}

long double value_at(const ValueTile& values, std::int64_t row, std::int64_t column) {
  return slow::value_of(
      values.dtype,
      slow::load(values.data, row * values.row_stride + column * values.column_stride, values.dtype));
}

Encoded slow(const ValueTile& values, std::int64_t first_column = 0, const SharedScales& shared = {}) {
  Encoded result;
  result.blocks = blocks_of(first_column, values.columns);
  for (std::int64_t row = 0; row < values.rows; ++row) {
    std::vector<std::vector<long double>> by_block(static_cast<std::size_t>(result.blocks));
    for (std::int64_t column = 0; column < values.columns; ++column) {
      by_block[static_cast<std::size_t>((first_column + column) / block)].push_back(
          value_at(values, row, column));
    }
    for (std::size_t b = 0; b < by_block.size(); ++b) {
      std::uint8_t scale = slow::scale_of(by_block[b]);
      if (b + 1 == by_block.size() && shared.last != nullptr) scale = shared.last[row];
      if (b == 0 && shared.first != nullptr) scale = shared.first[row];
      result.scales.push_back(scale);
      for (long double value : by_block[b]) result.elements.push_back(slow::encoded(value, scale));
    }
  }
  return result;
}

void expect_same(const ValueTile& values, std::int64_t first_column = 0, const SharedScales& shared = {}) {
  const Encoded expected = slow(values, first_column, shared);
  const Encoded found = fast(values, first_column, shared);
  ASSERT_EQ(found.scales, expected.scales)
      << name_of(values.dtype) << " " << values.rows << " x " << values.columns;
  ASSERT_EQ(found.elements, expected.elements)
      << name_of(values.dtype) << " " << values.rows << " x " << values.columns;
}

void store(void* memory, std::int64_t index, DType dtype, std::uint64_t bits) {
  const auto size = static_cast<std::size_t>(bytes_of(dtype));
  std::memcpy(static_cast<std::byte*>(memory) + static_cast<std::size_t>(index) * size, &bits, size);
}

/// Blocks of a kind: their values around a power of two, so that scales of all sizes come up.
std::vector<std::uint8_t> random_values(Random& random, DType dtype, std::int64_t count, int around) {
  std::vector<std::uint8_t> memory(static_cast<std::size_t>(count * bytes_of(dtype)));
  for (std::int64_t i = 0; i < count; ++i) {
    const long double mantissa = 1 + static_cast<long double>(random.number(0, (1 << 24) - 1)) / (1 << 24);
    const long double value = std::ldexp(mantissa, around - static_cast<int>(random.number(0, 20)));
    store(memory.data(), i, dtype, slow::rounded(dtype, random.chance(2) ? value : -value));
  }
  return memory;
}

TEST_P(Encode, AnyBitsGiveWhatTheDefinitionSays) {
  Random random(1);
  for (DType dtype : sources) {
    for (int repeat = 0; repeat < 60; ++repeat) {
      const std::int64_t rows = random.number(1, 4);
      const std::int64_t columns = random.number(1, 200);
      const std::vector<std::uint8_t> memory = random.bytes(rows * columns * bytes_of(dtype));
      expect_same({memory.data(), dtype, rows, columns, columns, 1}, random.number(0, block - 1));
    }
  }
}

TEST_P(Encode, ValuesOfEverySizeGiveWhatTheDefinitionSays) {
  Random random(2);
  for (DType dtype : sources) {
    for (int around = dtype == DType::F16 ? -26 : -150; around <= (dtype == DType::F16 ? 15 : 127);
         ++around) {
      const std::vector<std::uint8_t> memory = random_values(random, dtype, 2 * 3 * block, around);
      expect_same({memory.data(), dtype, 2, 3 * block, 3 * block, 1});
    }
  }
}

/// Each of the 2^16 BF16 values as the largest of a block of its own, and what the definition makes of it.
struct AllLargest {
  std::vector<std::uint16_t> values = std::vector<std::uint16_t>(65536 * block);
  Encoded expected;

  AllLargest() {
    Random random(3);
    for (std::size_t bits = 0; bits < 65536; ++bits) {
      for (std::size_t column = 0; column < block; ++column) {
        // Beside it nothing larger: its bits, less a random number of them.
        const auto less = static_cast<std::size_t>(random.number(0, 0x7FFF)) % ((bits & 0x7FFF) + 1);
        values[bits * block + column] =
            static_cast<std::uint16_t>(column == bits % block ? bits : (bits & 0x7FFF) - less);
      }
    }
    expected = slow(tile());
  }

  ValueTile tile() const { return {values.data(), DType::BF16, 65536, block, block, 1}; }
};

TEST_P(Encode, EveryBf16ValueAsABlocksLargest) {
  static const AllLargest all;
  const Encoded found = fast(all.tile());
  EXPECT_TRUE(found.scales == all.expected.scales);
  EXPECT_TRUE(found.elements == all.expected.elements);
}

/// The same values, column behind column.
TEST_P(Encode, EveryBf16ValueAsTheLargestOfABlockThatStandsUpright) {
  static const AllLargest all;
  std::vector<std::uint16_t> upright(all.values.size());
  for (std::size_t row = 0; row < 65536; ++row) {
    for (std::size_t column = 0; column < block; ++column)
      upright[column * 65536 + row] = all.values[row * block + column];
  }
  const Encoded found = fast({upright.data(), DType::BF16, 65536, block, 1, 65536});
  EXPECT_TRUE(found.scales == all.expected.scales);
  EXPECT_TRUE(found.elements == all.expected.elements);
}

/// Numbers near each other, and one in `scarce` that is something else.
std::vector<std::uint16_t> values_of_all_kinds(Random& random, std::int64_t count, std::int64_t scarce) {
  std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
  for (std::uint16_t& value : values) {
    // Down to 2^-13 times the largest, below which codes are subnormal.
    const auto exponent = static_cast<std::uint16_t>(random.number(20, 34) << 7);
    value = static_cast<std::uint16_t>(random.number(0, 0x7F) | exponent | random.number(0, 1) << 15);
    if (!random.chance(static_cast<int>(scarce))) continue;
    value = random.one_of<std::uint16_t>({0, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0x0001, 0x0080, 0x7F7F,
                                          static_cast<std::uint16_t>(exponent - (14 << 7)),
                                          static_cast<std::uint16_t>(exponent - (19 << 7))});
  }
  return values;
}

/// Long lines, most of whose blocks are of numbers near each other: what stands between them ends a run of
/// such blocks anywhere.
TEST_P(Encode, BlocksOfAllKindsInOneLine) {
  Random random(6);
  for (int repeat = 0; repeat < 40; ++repeat) {
    const std::int64_t columns = random.number(1, 90 * block);
    const auto values = values_of_all_kinds(random, 3 * columns, random.number(1, 40) * block);
    expect_same({values.data(), DType::BF16, 3, columns, columns, 1});
  }
}

/// The same of blocks that stand upright, many side by side, whole ones and cut ones.
TEST_P(Encode, BlocksOfAllKindsThatStandUpright) {
  Random random(7);
  for (int repeat = 0; repeat < 40; ++repeat) {
    const std::int64_t rows = random.number(1, 700);
    const std::int64_t columns = random.number(1, 4 * block);
    const auto values = values_of_all_kinds(random, rows * columns, random.number(1, 400) * block);
    const std::int64_t first_column = random.chance(2) ? 0 : random.number(0, block - 1);
    std::vector<std::uint8_t> scales = random.bytes(rows);
    for (std::uint8_t& scale : scales) scale = 127 + scale % 100;
    const SharedScales shared{random.chance(3) ? scales.data() : nullptr,
                              random.chance(3) ? scales.data() : nullptr};
    expect_same({values.data(), DType::BF16, rows, columns, 1, rows}, first_column, shared);
  }
}

TEST_P(Encode, ScalesOfZerosInfinitiesAndNans) {
  const auto scale_of = [](const std::vector<std::uint16_t>& bf16) {
    return fast({bf16.data(), DType::BF16, 1, std::ssize(bf16), std::ssize(bf16), 1});
  };
  EXPECT_EQ(scale_of(std::vector<std::uint16_t>(32, 0)).scales[0], 0);
  EXPECT_EQ(scale_of({0x8000, 0}).elements, (std::vector<std::uint8_t>{0x80, 0}));
  const Encoded nan = scale_of({0x7FC0, 0xFFFF, 0x3F80});  // NaN, -NaN, 1: which is 256 / 256
  EXPECT_EQ(nan.scales[0], 127 - 8);
  EXPECT_EQ(nan.elements, (std::vector<std::uint8_t>{0x7F, 0xFF, 0x78}));
  const Encoded infinite = scale_of({0x7F80, 0xFF80, 0x3F80});
  EXPECT_EQ(infinite.scales[0], 127 + 120);
  EXPECT_EQ(infinite.elements, (std::vector<std::uint8_t>{0x7E, 0xFE, 0}));
  EXPECT_EQ(scale_of({0x43E0}).scales[0], 127);      // 448
  EXPECT_EQ(scale_of({0x43E1}).scales[0], 127 + 1);  // 450
  EXPECT_EQ(scale_of({0x0001}).scales[0], 0);        // the least above zero
}

TEST_P(Encode, TilesAnywhereInMemory) {
  Random random(4);
  for (int repeat = 0; repeat < 200; ++repeat) {
    const DType dtype = random.one_of(sources);
    const std::int64_t rows = random.number(1, 150);
    const std::int64_t columns = random.number(1, 150);
    const Strides strides = random.one_of<Strides>({Strides::straight, Strides::transposed, Strides::any});
    RandomDestination place(random, dtype, rows, columns, strides);
    const std::vector<std::uint8_t> values = random_values(random, dtype, rows * columns, 3);
    shardwright::place({values.data(), dtype, rows, columns, columns}, place.tile);
    const std::int64_t first_column = random.number(0, block - 1);
    const std::vector<std::uint8_t> first = random.bytes(rows);
    const std::vector<std::uint8_t> last = random.bytes(rows);
    std::vector<std::uint8_t> large(first.size());  // no smaller than what the block needs
    for (std::size_t i = 0; i < large.size(); ++i) large[i] = 127 + first[i] % 100;
    const SharedScales shared{random.chance(2) ? large.data() : nullptr,
                              random.chance(2) ? large.data() : nullptr};
    const ValueTile straight{values.data(), dtype, rows, columns, columns, 1};
    const ValueTile tile{place.tile.data,         dtype, rows, columns, place.tile.row_stride,
                         place.tile.column_stride};
    const Encoded expected = slow(straight, first_column, shared);
    const Encoded found = fast(tile, first_column, shared);
    ASSERT_EQ(found.scales, expected.scales) << repeat;
    ASSERT_EQ(found.elements, expected.elements) << repeat;

    const Encoded unshared = slow(straight, first_column);
    std::vector<std::uint8_t> scales(unshared.scales.size());
    find_scales(tile, first_column, scales.data(), unshared.blocks);
    ASSERT_EQ(scales, unshared.scales);
  }
}

/// Every scale, and every element in each: subnormals, NaNs, zeros, scales far larger than needed, results
/// that overflow or are subnormal themselves.
TEST_P(Encode, WhatWasDecodedIsDecodedToTheSameBitsAgain) {
  Random random(5);
  constexpr std::int64_t rows = 256;
  constexpr std::int64_t columns = 16 * block;
  for (int repeat = 0; repeat < 24; ++repeat) {
    std::vector<std::uint8_t> elements(rows * columns);
    std::vector<std::uint8_t> scales(rows * columns / block);
    for (std::size_t i = 0; i < scales.size(); ++i) {
      scales[i] = static_cast<std::uint8_t>(i * block / columns);
      // Blocks of small elements only, too, down to those of the least subnormal.
      const std::int64_t limit = random.chance(2) ? 0x7F : random.number(0, 0x7F);
      for (std::size_t c = 0; c < block; ++c) {
        elements[i * block + c] =
            static_cast<std::uint8_t>(random.number(0, limit) | (random.chance(2) ? 0x80 : 0));
      }
    }
    for (DType dtype : {DType::BF16, DType::F32}) {
      const auto size = static_cast<std::size_t>(bytes_of(dtype));
      std::vector<std::uint8_t> once(elements.size() * size);
      std::vector<std::uint8_t> again(once.size());
      decode({elements.data(), DType::F8_E4M3, rows, columns, columns}, {scales.data(), columns / block},
             {once.data(), dtype, columns, 1});
      const Encoded encoded = fast({once.data(), dtype, rows, columns, columns, 1});
      decode({encoded.elements.data(), DType::F8_E4M3, rows, columns, columns},
             {encoded.scales.data(), columns / block}, {again.data(), dtype, columns, 1});
      ASSERT_EQ(once, again) << name_of(dtype);
    }
  }
}

TEST(EncodeArguments, OtherDtypesAreRefused) {
  const double value = 1;
  std::uint8_t byte = 0;
  EXPECT_FALSE(can_encode(DType::F64));
  EXPECT_THROW(encode({&value, DType::F64, 1, 1, 1, 1}, 0, {}, {&byte, 1, &byte, 1}), std::invalid_argument);
  EXPECT_THROW(find_scales({&value, DType::I8, 1, 1, 1, 1}, 0, &byte, 1), std::invalid_argument);
}

}  // namespace
}  // namespace shardwright
