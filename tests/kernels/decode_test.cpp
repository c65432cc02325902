#include "kernels/decode.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <stdexcept>

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

/// All results, by scale and element.
const std::vector<std::uint64_t>& slow_table(DType dtype) {
  static std::map<DType, std::vector<std::uint64_t>> tables;
  std::vector<std::uint64_t>& table = tables[dtype];
  if (table.empty()) {
    for (int scale = 0; scale < 256; ++scale) {
      for (int element = 0; element < 256; ++element) {
        table.push_back(
            slow::decoded(dtype, static_cast<std::uint8_t>(element), static_cast<std::uint8_t>(scale)));
      }
    }
  }
  return table;
}

/// Decodes all 256 elements, 64 times, with one scale for each row, and expects what the table says.
void expect_table(DType dtype, const std::vector<std::uint8_t>& scale_of_row, bool transposed) {
  const auto rows = static_cast<std::int64_t>(scale_of_row.size());
  constexpr std::int64_t columns = 256;
  std::vector<std::uint8_t> elements;
  std::vector<std::uint8_t> scales;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (int element = 0; element < columns; ++element)
      elements.push_back(static_cast<std::uint8_t>(element));
    scales.insert(scales.end(), columns / 32, scale_of_row[static_cast<std::size_t>(row)]);
  }
  std::vector<std::uint64_t> memory(elements.size());
  const std::int64_t row_stride = transposed ? 1 : columns;
  const std::int64_t column_stride = transposed ? rows : 1;
  decode({elements.data(), DType::F8_E4M3, rows, columns, columns}, {scales.data(), columns / 32},
         {memory.data(), dtype, row_stride, column_stride});
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::uint8_t scale = scale_of_row[static_cast<std::size_t>(row)];
    for (std::int64_t element = 0; element < columns; ++element) {
      ASSERT_EQ(slow::load(memory.data(), row * row_stride + element * column_stride, dtype),
                slow_table(dtype)[static_cast<std::size_t>(scale * columns + element)])
          << "element " << element << ", scale " << int{scale} << ", to " << name_of(dtype)
          << (transposed ? ", transposed" : ", straight");
    }
  }
}

void expect_table_for_all_scales() {
  std::vector<std::uint8_t> every_scale;
  for (int scale = 0; scale < 256; ++scale) every_scale.push_back(static_cast<std::uint8_t>(scale));
  for (const DType dtype : destinations) {
    for (const bool transposed : {false, true}) {
      for (const std::uint8_t scale : every_scale) {
        expect_table(dtype, std::vector<std::uint8_t>(65, scale), transposed);
      }
      expect_table(dtype, every_scale, transposed);
    }
  }
}

TEST_P(Decode, EqualsTheDefinitionForEveryPairOfElementAndScale) { expect_table_for_all_scales(); }

#if defined(__x86_64__)
TEST_P(Decode, DoesNotDependOnTheCallersFloatingPointMode) {
  for (const DType dtype : destinations) slow_table(dtype);  // not under the mode in question
  const unsigned before = _mm_getcsr();
  constexpr unsigned flush_to_zero = 0x8000;
  constexpr unsigned denormals_are_zero = 0x0040;
  for (const unsigned rounding : {0x0000U, 0x2000U, 0x4000U, 0x6000U}) {
    _mm_setcsr((before & ~0x6000U) | flush_to_zero | denormals_are_zero | rounding);
    expect_table_for_all_scales();
    _mm_setcsr(before);
  }
}
#endif

struct RandomScales {
  std::vector<std::uint8_t> memory;
  BlockScales scales;

  RandomScales(Random& random, std::int64_t rows, std::int64_t columns) {
    if (random.chance(3)) {
      scales.block_rows = random.one_of<std::int64_t>({1, 2, 3, 16, 33, 128});
      scales.block_columns = random.one_of<std::int64_t>({1, 7, 16, 32, 64, 128, 1000});
    }
    scales.first_row = random.number(0, scales.block_rows - 1);
    scales.first_column = random.number(0, scales.block_columns - 1);
    const std::int64_t block_rows = (scales.first_row + rows) / scales.block_rows + 1;
    const std::int64_t block_columns = (scales.first_column + columns) / scales.block_columns + 1;
    scales.row_stride = block_columns + (random.chance(2) ? 0 : random.number(1, 40));
    memory = random.bytes(block_rows * scales.row_stride);
    if (!random.chance(3)) {
      for (std::uint8_t& scale : memory) scale = static_cast<std::uint8_t>(100 + scale % 32);
    }
    scales.data = memory.data();
  }
};

void expect_same_as_slow(Random& random, std::int64_t rows, std::int64_t columns, Strides strides) {
  const RandomSource source(random, DType::F8_E4M3, rows, columns);
  const RandomScales scales(random, rows, columns);
  RandomDestination destination(random, random.one_of(destinations), rows, columns, strides);
  RandomDestination expected = destination;
  slow::decode(source.tile, scales.scales, expected.tile);
  decode(source.tile, scales.scales, destination.tile);
  // The whole memory: what lies around the tile and between its elements has not changed.
  ASSERT_TRUE(destination.memory == expected.memory)
      << description(source.tile, destination.tile) << ", blocks of " << scales.scales.block_rows << " x "
      << scales.scales.block_columns << " from " << scales.scales.first_row << ", "
      << scales.scales.first_column;
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

/// Memory between two pages that cannot be touched.
class BetweenGuards {
 public:
  explicit BetweenGuards(std::size_t size) : page_(static_cast<std::size_t>(sysconf(_SC_PAGESIZE))) {
    inner_ = (size + page_ - 1) / page_ * page_;
    void* address =
        mmap(nullptr, inner_ + 2 * page_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (address == MAP_FAILED) throw std::bad_alloc();
    outer_ = static_cast<std::uint8_t*>(address);
    mprotect(outer_, page_, PROT_NONE);
    mprotect(outer_ + page_ + inner_, page_, PROT_NONE);
  }
  BetweenGuards(const BetweenGuards&) = delete;
  BetweenGuards& operator=(const BetweenGuards&) = delete;
  ~BetweenGuards() { munmap(outer_, inner_ + 2 * page_); }

  std::uint8_t* begin() { return outer_ + page_; }
  std::uint8_t* end() { return begin() + inner_; }

 private:
  std::size_t page_;
  std::size_t inner_;
  std::uint8_t* outer_;
};

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
        const std::int64_t blocks = (columns + 31) / 32;
        BetweenGuards elements(static_cast<std::size_t>(rows * columns));
        BetweenGuards scales(static_cast<std::size_t>(rows * blocks));
        const SourceTile source{at_end ? elements.end() - rows * columns : elements.begin(), DType::F8_E4M3,
                                rows, columns, columns};
        std::memset(scales.begin(), 120, static_cast<std::size_t>(scales.end() - scales.begin()));
        const BlockScales block_scales{at_end ? scales.end() - rows * blocks : scales.begin(), blocks};
        const RandomDestination destination(random, DType::BF16, rows, columns, strides);
        decode(source, block_scales, destination.tile);  // or the process dies
      }
    }
  }
}

TEST_P(Decode, RefusesElementsThatHaveNoBlockScalesAndDestinationsThatAreNoWideFloats) {
  std::uint8_t memory[8] = {};
  EXPECT_THROW(decode({memory, DType::BF16, 1, 1, 1}, {memory, 1}, {memory + 4, DType::BF16, 1, 1}),
               std::invalid_argument);
  EXPECT_THROW(decode({memory, DType::F8_E4M3, 1, 1, 1}, {memory, 1}, {memory + 4, DType::I32, 1, 1}),
               std::invalid_argument);
}

}  // namespace
}  // namespace shardwright
