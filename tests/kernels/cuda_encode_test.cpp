#include <gtest/gtest.h>

#include <deque>
#include <stdexcept>
#include <utility>

#include "random_encoding.h"
#include "run_launch.h"

namespace shardwright::cuda {
namespace {

std::size_t run_all(const std::vector<TileToEncode>& encodings, std::int64_t longest = longest_side) {
  const std::vector<EncodingLaunch> launches = encoding_launches_for(encodings, longest);
  for (const EncodingLaunch& launch : launches) run(launch);
  return launches.size();
}

const std::vector<Strides> all_strides = {Strides::straight, Strides::transposed, Strides::any};

TEST(CudaEncode, EqualsTheDefinitionForTilesAnywhereInMemoryAndWritesNothingElse) {
  Random random(1);
  for (int round = 0; round < 400; ++round) {
    const std::int64_t longest = random.one_of<std::int64_t>({8, 70, 200});
    RandomEncoding one(random, random.one_of(encodable), random.number(0, longest), random.number(0, longest),
                       random.one_of(all_strides));
    run_all({one.encoding()}, random.chance(3) ? random.number(1, 100) : longest_side);
    ASSERT_EQ(one.scales, one.expected_scales) << one.describe();
    ASSERT_EQ(one.elements, one.expected_elements) << one.describe();
  }
}

TEST(CudaEncode, FindsScalesAloneForATileWithoutElements) {
  Random random(2);
  for (int round = 0; round < 100; ++round) {
    RandomEncoding one(random, random.one_of(encodable), random.number(1, 100), random.number(1, 100),
                       random.one_of(all_strides));
    std::vector<std::uint8_t> expected = one.scales;
    find_scales(one.value_tile(), one.first_column, expected.data() + RandomEncoding::guard,
                one.scale_row_stride);
    TileToEncode encoding = one.encoding();
    encoding.encoded.elements = nullptr;
    encoding.shared = {};
    run_all({encoding});
    ASSERT_EQ(one.scales, expected) << one.describe();
  }
}

TEST(CudaEncode, EncodesManyTilesInFewLaunches) {
  Random random(3);
  std::deque<RandomEncoding> tiles;
  std::vector<TileToEncode> encodings;
  for (int i = 0; i < 150; ++i) {
    tiles.emplace_back(random, random.one_of(encodable), random.number(0, 80), random.number(0, 80),
                       random.one_of(all_strides));
    encodings.push_back(tiles.back().encoding());
  }
  EXPECT_LE(run_all(encodings), 150 / most_parts + 2);
  for (const RandomEncoding& tile : tiles) {
    ASSERT_EQ(tile.scales, tile.expected_scales) << tile.describe();
    ASSERT_EQ(tile.elements, tile.expected_elements) << tile.describe();
  }
}

TEST(CudaEncode, ReadsNothingOutsideTheTile) {
  for (const auto& [rows, columns] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {1, 1}, {1, 33}, {33, 1}, {70, 70}, {64, 64}, {15, 129}, {129, 15}}) {
    for (const bool transposed : {false, true}) {
      for (const bool at_end : {false, true}) {
        for (const std::int64_t first_column : {0, 13}) {
          BetweenGuards values(static_cast<std::size_t>(rows * columns * 2));
          std::vector<std::uint8_t> elements(static_cast<std::size_t>(rows * columns));
          std::vector<std::uint8_t> scales(static_cast<std::size_t>(rows * (columns / 32 + 2)));
          const ValueTile tile{at_end ? values.end() - rows * columns * 2 : values.begin(),
                               DType::BF16,
                               rows,
                               columns,
                               transposed ? 1 : columns,
                               transposed ? rows : 1};
          run_all({{tile, first_column, {}, {elements.data(), columns, scales.data(), columns / 32 + 2}}});
        }
      }
    }
  }
}

TEST(CudaEncode, RefusesOtherDtypes) {
  const double value = 1;
  std::uint8_t byte = 0;
  EXPECT_THROW(run_all({{{&value, DType::F64, 1, 1, 1, 1}, 0, {}, {&byte, 1, &byte, 1}}}),
               std::invalid_argument);
}

}  // namespace
}  // namespace shardwright::cuda
