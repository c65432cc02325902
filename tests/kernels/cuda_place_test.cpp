#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <deque>
#include <ios>
#include <set>
#include <stdexcept>
#include <utility>

#include "random_placing.h"
#include "run_launch.h"

namespace shardwright::cuda {
namespace {

std::vector<Launch> run_all(const std::vector<Placing>& placings, std::int64_t longest = longest_side) {
  std::vector<Launch> launches = launches_for(placings, longest);
  for (const Launch& launch : launches) run(launch);
  return launches;
}

TEST(CudaPlace, EqualsTheDefinitionForEveryChangeAndWritesNothingElse) {
  Random random(1);
  for (const Change& change : every_change()) {
    for (int round = 0; round < 15; ++round) {
      const Strides strides = random.one_of<Strides>({Strides::straight, Strides::transposed, Strides::any});
      const std::int64_t longest = random.one_of<std::int64_t>({8, 70, 200});
      const RandomPlacing one(random, change, random.number(0, longest), random.number(0, longest), strides);
      run_all({one.placing()});
      ASSERT_TRUE(one.is_as_expected()) << one.describe();
    }
  }
}

TEST(CudaPlace, TakesEveryShapeOfBlockAndTilesOfManyBlocks) {
  Random random(2);
  std::set<std::uint32_t> shapes;
  for (const auto& [rows, columns] : std::vector<std::pair<std::int64_t, std::int64_t>>{{3000, 3},
                                                                                        {1500, 17},
                                                                                        {700, 64},
                                                                                        {300, 128},
                                                                                        {150, 256},
                                                                                        {90, 512},
                                                                                        {40, 768},
                                                                                        {35, 1536},
                                                                                        {17, 2048},
                                                                                        {9, 4096},
                                                                                        {5, 4099},
                                                                                        {4, 12288},
                                                                                        {3, 9000},
                                                                                        {1, 20000},
                                                                                        {1, 1},
                                                                                        {64, 64},
                                                                                        {65, 63},
                                                                                        {129, 257},
                                                                                        {63, 640}}) {
    for (const Strides strides : {Strides::straight, Strides::transposed, Strides::any}) {
      const Format& format = random.one_of(formats);
      const Change change{format.element, DType::BF16, format};
      const RandomPlacing one(random, change, rows, columns, strides);
      for (const Launch& launch : run_all({one.placing()}))
        shapes.insert(launch.batch.tiles[0].chunks_across);
      ASSERT_TRUE(one.is_as_expected()) << one.describe();
    }
  }
  EXPECT_EQ(shapes, (std::set<std::uint32_t>{1, 2, 4, 8, 16, 32, 64, 128, 256}));
}

TEST(CudaPlace, PlacesManyTilesOfAnyKindsInFewLaunches) {
  Random random(3);
  const std::vector<Change> changes = every_change();
  for (int round = 0; round < 30; ++round) {
    std::deque<RandomPlacing> tiles;
    std::vector<Placing> placings;
    for (std::int64_t count = random.number(0, 120); count > 0; --count) {
      const Strides strides = random.one_of<Strides>({Strides::straight, Strides::transposed, Strides::any});
      tiles.emplace_back(random, random.one_of(changes), random.number(0, 80), random.number(0, 80), strides);
      placings.push_back(tiles.back().placing());
    }
    const std::vector<Launch> launches = run_all(placings);
    for (const RandomPlacing& tile : tiles) ASSERT_TRUE(tile.is_as_expected()) << tile.describe();
    // One more than the full ones for each layout and size.
    EXPECT_LE(launches.size(), placings.size() / most_tiles + 2 * 4);
  }
}

TEST(CudaPlace, CutsTilesThatAreLongerThanALaunchCanTake) {
  Random random(4);
  for (int round = 0; round < 200; ++round) {
    const RandomPlacing one(random, random.one_of(every_change()), random.number(0, 60), random.number(0, 60),
                            random.one_of<Strides>({Strides::straight, Strides::transposed, Strides::any}));
    run_all({one.placing()}, random.number(1, 40));
    ASSERT_TRUE(one.is_as_expected()) << one.describe();
  }
}

TEST(CudaPlace, ReadsNothingOutsideTheTileAndItsScales) {
  Random random(5);
  for (const auto& [rows, columns] : std::vector<std::pair<std::int64_t, std::int64_t>>{{1, 1},
                                                                                        {1, 33},
                                                                                        {33, 1},
                                                                                        {70, 70},
                                                                                        {64, 64},
                                                                                        {15, 129},
                                                                                        {129, 15},
                                                                                        {300, 100},
                                                                                        {3, 96},
                                                                                        {40, 160},
                                                                                        {3, 352},
                                                                                        {3, 2049}}) {
    for (const Strides strides : {Strides::straight, Strides::transposed, Strides::any}) {
      for (const Format& format : formats) {
        for (const bool at_end : {false, true}) {
          const bool is_packed = bytes_of(format.element) == 0;
          const std::int64_t row_stride = is_packed ? (columns + 1) / 2 * 2 : columns;
          const std::int64_t element_bits = ((rows - 1) * row_stride + columns) * bits_of(format.element);
          const std::int64_t element_bytes = (element_bits + 7) / 8;
          const std::int64_t blocks = (columns - 1) / format.block_columns + 1;
          const std::int64_t scale_bytes =
              ((rows - 1) / format.block_rows + 1) * blocks * bytes_of(format.scale);
          BetweenGuards elements(static_cast<std::size_t>(element_bytes));
          BetweenGuards scales(static_cast<std::size_t>(scale_bytes));
          std::memset(scales.begin(), 120, static_cast<std::size_t>(scales.end() - scales.begin()));
          const RandomDestination destination(random, DType::BF16, rows, columns, strides);
          run_all({{{at_end ? elements.end() - element_bytes : elements.begin(), format.element, rows,
                     columns, row_stride, is_packed && columns % 2 == 1},
                    format.block_scales(at_end ? scales.end() - scale_bytes : scales.begin(), blocks),
                    destination.tile}});  // or the process dies
        }
      }
    }
  }
}

/// All codes with all scale bytes, each scale for whole blocks, for blocks that are cut between two scales,
/// and among chunks with and without NaN.
TEST(CudaPlace, DecodesEveryCodeWithEveryScaleByte) {
  for (const Format& format : formats) {
    if (bits_of(format.element) > 8 || bits_of(format.scale) > 8) continue;
    const std::int64_t codes = std::int64_t{1} << bits_of(format.element);
    for (const DType to : wide_floats) {
      for (const bool transposed : {false, true}) {
        for (const std::int64_t first_column : {0, 5}) {
          std::vector<std::uint8_t> elements(256 * 256);
          std::vector<std::uint8_t> scales(256 * 9);
          for (std::int64_t i = 0; i < 256 * 256; ++i) {
            slow::store(elements.data(), i, format.element, static_cast<std::uint64_t>(i % codes));
          }
          for (std::size_t i = 0; i < scales.size(); ++i)
            scales[i] = static_cast<std::uint8_t>(i / 9 + i % 9 % 2);
          std::vector<std::uint64_t> found(elements.size());
          std::vector<std::uint64_t> expected(elements.size());
          const SourceTile source{elements.data(), format.element, 256, 256, 256};
          BlockScales block_scales = format.block_scales(scales.data(), 9);
          block_scales.block_rows = 1;
          block_scales.block_columns = 32;
          block_scales.first_column = first_column;
          const std::int64_t row_stride = transposed ? 1 : 256;
          const std::int64_t column_stride = transposed ? 256 : 1;
          slow::decode(source, block_scales, {expected.data(), to, row_stride, column_stride});
          run_all({{source, block_scales, {found.data(), to, row_stride, column_stride}}});
          ASSERT_TRUE(found == expected) << format.name() << " to " << name_of(to);
        }
      }
    }
  }
}

/// As for the CPU's: see decode_test.cpp.
TEST(CudaPlace, EqualsTheDefinitionForNvfp4WithRandomGlobalScales) {
  Random random(6);
  std::vector<std::uint8_t> elements(128 * 8);
  std::vector<std::uint8_t> scales(128);
  for (std::int64_t i = 0; i < 128 * 16; ++i)
    slow::store(elements.data(), i, DType::F4, static_cast<std::uint64_t>(i % 16));
  for (std::size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<std::uint8_t>(i);
  const SourceTile source{elements.data(), DType::F4, 1, 128 * 16, 128 * 16};
  for (int round = 0; round < 30; ++round) {
    const float global = std::bit_cast<float>(static_cast<std::uint32_t>(random.number(97, 156) << 23) |
                                              static_cast<std::uint32_t>(random.number(0, 0x7FFFFF)));
    for (const Product product : {Product::modelopt_nvfp4, Product::compressed_tensors_nvfp4}) {
      const BlockScales block_scales{scales.data(), 128, 1, 16, 0, 0, DType::F8_E4M3, product, global};
      std::vector<std::uint16_t> found(128 * 16);
      std::vector<std::uint16_t> expected(128 * 16);
      slow::decode(source, block_scales, {expected.data(), DType::BF16, 128 * 16, 1});
      run_all({{source, block_scales, {found.data(), DType::BF16, 128 * 16, 1}}});
      ASSERT_TRUE(found == expected) << "global " << std::hexfloat << global;
    }
  }
}

TEST(CudaPlace, CopiesPackedFormatsByWholeBytesAndRefusesToSplitOne) {
  const std::vector<std::uint8_t> source = {1, 2, 3, 4, 5, 6};
  std::vector<std::uint8_t> destination(6);
  run_all({{{source.data(), DType::F4, 2, 4, 6}, {}, {destination.data(), DType::F4, 4, 1}}});
  EXPECT_EQ(destination, (std::vector<std::uint8_t>{1, 2, 4, 5, 0, 0}));
  run_all({{{source.data(), DType::F6_E2M3, 1, 8, 8}, {}, {destination.data(), DType::F6_E2M3, 8, 1}}});
  EXPECT_EQ(destination, source);
  EXPECT_THROW(run_all({{{source.data(), DType::F4, 2, 3, 6}, {}, {destination.data(), DType::F4, 4, 1}}}),
               std::invalid_argument);
  EXPECT_THROW(run_all({{{source.data(), DType::F4, 2, 4, 6}, {}, {destination.data(), DType::F4, 4, 2}}}),
               std::invalid_argument);
}

TEST(CudaPlace, RefusesWhatPlaceAndDecodeRefuse) {
  std::uint64_t memory[4] = {};
  const auto attempt = [&](DType from, DType to, std::optional<DType> scale) {
    BlockScales scales;
    if (scale) scales = {memory, 1, 1, 32, 0, 0, *scale};
    run_all({{{memory, from, 1, 1, 2}, scales, {memory + 2, to, 1, 1}}});
  };
  EXPECT_NO_THROW(attempt(DType::F8_E4M3, DType::BF16, DType::U8));
  EXPECT_THROW(attempt(DType::I32, DType::BF16, {}), std::invalid_argument);
  EXPECT_THROW(attempt(DType::BF16, DType::F8_E4M3, {}), std::invalid_argument);
  EXPECT_THROW(attempt(DType::BF16, DType::BF16, DType::U8), std::invalid_argument);
  EXPECT_THROW(attempt(DType::F8_E4M3, DType::BF16, DType::F8_E4M3), std::invalid_argument);
  EXPECT_THROW(attempt(DType::F8_E4M3, DType::I32, DType::U8), std::invalid_argument);
  EXPECT_THROW(attempt(DType::F8_E4M3, DType::F8_E4M3, DType::U8), std::invalid_argument);
}

}  // namespace
}  // namespace shardwright::cuda
