#include "planner/save/weight_numbers.h"

#include <gtest/gtest.h>

#include <set>

#include "planner/save/quantization.h"
#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

Catalog catalog_of_one(const char* quantization, const Shape& shape) {
  SourceTensor weight;
  weight.name = "a.weight";
  weight.shape = shape;
  weight.offset.assign(shape.size(), 0);
  const Quantization& how = *quantization_named(quantization);
  Catalog catalog;
  catalog.tensors = {weight, scales_by(how, encoding_by(how, shape), weight)};
  return catalog;
}

TEST(weight_numbers, parts_in_cut_blocks_are_the_elements_of_blocks_that_a_box_has_not_all_of) {
  Random random(1);
  for (int round = 0; round < 300; ++round) {
    const Shape shape{random.between(1, 300), random.between(1, 300)};
    const char* const name = random.one_of<const char*>({"block_fp8", "mxfp4-ocp", "nvfp4-modelopt"});
    const Encoding encoding = encoding_by(*quantization_named(name), shape);
    Box box = whole(shape);
    for (std::size_t d = 0; d < 2; ++d) {
      box.offset[d] = random.between(0, shape[d] - 1);
      box.size[d] = random.between(1, shape[d] - box.offset[d]);
    }
    std::set<std::int64_t> found;
    for (const Box& part : in_cut_blocks(encoding, box, shape))
      for_each_number(part, shape, [&](std::int64_t element) { found.insert(element); });
    std::set<std::int64_t> expected;
    for_each_number(box, shape, [&](std::int64_t element) {
      const Shape at{element / shape[1], element % shape[1]};
      const Box block = scale_box_of(encoding, {at, {1, 1}});
      const Box all = weight_box_of(encoding, block, shape);
      if (intersection(all, box) != all) expected.insert(element);
    });
    ASSERT_EQ(found, expected) << name << " " << to_string(box) << " of " << to_string(shape);
  }
}

TEST(weight_numbers, each_rank_gets_the_largest_of_all_and_the_values_that_it_wants) {
  const Catalog catalog = catalog_of_one("mxfp4-ocp", {4, 64});
  std::vector<std::vector<WeightNumbers>> ranks(3);
  ranks[0] = {{"a.weight", 2, {0, 3}, {1, 2}, {}, {}, {33}}};
  ranks[1] = {{"a.weight", 5, {3, 7}, {4, 1}, {33, 97}, {-0.5F, 8}, {}}};
  ranks[2] = {{"not there", 9, {1}, {1}, {}, {}, {}}};
  share_numbers(catalog, ranks);
  EXPECT_EQ(ranks[0], (std::vector<WeightNumbers>{{"a.weight", 5, {0, 3}, {1, 4}, {33}, {-0.5F}, {}}}));
  EXPECT_EQ(ranks[1], (std::vector<WeightNumbers>{{"a.weight", 5, {3, 7}, {4, 1}, {}, {}, {}}}));
  EXPECT_TRUE(ranks[2].empty());
}

TEST(weight_numbers, of_blocks_and_elements_that_there_are_not_are_refused) {
  const Catalog catalog = catalog_of_one("mxfp4-ocp", {4, 64});
  const std::vector<WeightNumbers> wrong{
      {"a.weight", 0, {8}, {1}}, {"a.weight", 0, {}, {}, {256}, {1}}, {"a.weight", 0, {}, {}, {}, {}, {256}}};
  for (const WeightNumbers& numbers : wrong) {
    std::vector<std::vector<WeightNumbers>> ranks{{}, {numbers}};
    expect_error(ErrorKind::malformed, {"rank 1", "a.weight"}, [&] { share_numbers(catalog, ranks); });
  }
}

TEST(weight_numbers, patterns_fit_as_a_shells_do) {
  EXPECT_TRUE(fits_pattern("a.mlp.b.weight", "*.mlp.*"));
  EXPECT_TRUE(fits_pattern("aab", "*ab"));
  EXPECT_TRUE(fits_pattern("", "*"));
  EXPECT_TRUE(fits_pattern("x1y", "x?y"));
  EXPECT_FALSE(fits_pattern("xy", "x?y"));
  EXPECT_FALSE(fits_pattern("a.mlp", "*.mlp.*"));
}

}  // namespace
}  // namespace shardwright
