#include "planner/block_scales.h"

#include <gtest/gtest.h>

#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

Encoding random_encoding(Random& random) {
  Encoding encoding = mxfp8();
  if (!random.once_in(3)) {
    encoding.block_rows = random.between(1, 4);
    encoding.block_columns = random.between(1, 9);
  }
  return encoding;
}

Shape block_of(const Encoding& encoding, const Shape& element) {
  return {element[0] / encoding.block_rows, element[1] / encoding.block_columns};
}

TEST(block_scales, a_box_of_weights_needs_the_scales_of_its_elements_and_no_others) {
  Random random(1);
  for (int round = 0; round < 1000; ++round) {
    const Encoding encoding = random_encoding(random);
    const Shape shape = {random.between(0, 9), random.between(0, 80)};
    const Shape scale_shape = scale_shape_of(encoding, shape);
    std::vector<bool> in_shape(static_cast<std::size_t>(volume(scale_shape)), false);
    for_each_index(shape,
                   [&](const Shape& at) { in_shape[flat(block_of(encoding, at), scale_shape)] = true; });
    ASSERT_EQ(std::count(in_shape.begin(), in_shape.end(), false), 0) << to_string(shape);

    const Box box = random_box(random, shape, 0);
    const Box scales = scale_box_of(encoding, box);
    std::vector<bool> needed(in_shape.size(), false);
    for_each_index(box.size, [&](const Shape& step) {
      needed[flat(block_of(encoding, plus(step, box.offset)), scale_shape)] = true;
    });
    for_each_index(scale_shape, [&](const Shape& at) {
      ASSERT_EQ(holds(scales, at), needed[flat(at, scale_shape)]) << to_string(box) << to_string(scales);
    });
    ASSERT_EQ(is_empty(scales), is_empty(box));
  }
}

TEST(block_scales, a_box_of_scales_serves_the_elements_of_its_blocks) {
  Random random(2);
  for (int round = 0; round < 1000; ++round) {
    const Encoding encoding = random_encoding(random);
    const Shape shape = {random.between(1, 9), random.between(1, 80)};
    const Box scales = random_box(random, scale_shape_of(encoding, shape), 1);
    const Box served = weight_box_of(encoding, scales, shape);
    for_each_index(
        shape, [&](const Shape& at) { ASSERT_EQ(holds(served, at), holds(scales, block_of(encoding, at))); });
    ASSERT_EQ(intersection(served, whole(shape)), served);
  }
}

TEST(block_scales, the_name_of_the_scale_is_the_weights_with_a_suffix) {
  EXPECT_EQ(scale_name_of("a.weight"), "a.weight_scale_inv");
  EXPECT_EQ(weight_name_of("a.weight_scale_inv"), "a.weight");
  EXPECT_EQ(weight_name_of("a.weight"), "a.weight");
  EXPECT_TRUE(is_scale_name("a.weight_scale_inv"));
  EXPECT_FALSE(is_scale_name("a.weight"));
  EXPECT_FALSE(is_scale_name("a.weight_scale_inv.x"));
}

Catalog catalog_of(std::vector<SourceTensor> tensors) {
  Catalog catalog;
  catalog.files = {{"first.safetensors", 1000}, {"second.safetensors", 1000}};
  catalog.tensors = std::move(tensors);
  for (SourceTensor& tensor : catalog.tensors) {
    if (tensor.offset.empty()) tensor.offset = Shape(tensor.shape.size(), 0);
  }
  return catalog;
}

SourceTensor tensor(std::string name, DType dtype, Shape shape, std::uint32_t file = 0, Shape offset = {}) {
  return {std::move(name), dtype, std::move(shape), std::move(offset), file, 0, 0};
}

TEST(block_scales, the_presence_of_the_scales_decides) {
  const Catalog catalog = catalog_of(
      {tensor("plain", DType::BF16, {4, 40}), tensor("scaled", DType::F8_E4M3, {4, 40}),
       tensor("scaled_scale_inv", DType::U8, {4, 2}), tensor("typed", DType::F8_E4M3, {4, 1}, 0, {0, 0}),
       tensor("typed", DType::F8_E4M3, {4, 39}, 1, {0, 1}), tensor("typed_scale_inv", DType::F8_E8M0, {4, 1}),
       tensor("typed_scale_inv", DType::F8_E8M0, {4, 1}, 0, {0, 1})});
  EXPECT_EQ(encoding_of(catalog, catalog.find("plain")), (Encoding{DType::BF16, false, DType::U8, 1, 1}));
  EXPECT_EQ(encoding_of(catalog, catalog.find("scaled")), (Encoding{DType::F8_E4M3, true, DType::U8, 1, 32}));
  EXPECT_EQ(encoding_of(catalog, catalog.find("typed")),
            (Encoding{DType::F8_E4M3, true, DType::F8_E8M0, 1, 32}));
}

TEST(block_scales, scales_that_are_missing_or_do_not_fit_are_named_with_their_file) {
  struct Case {
    std::vector<SourceTensor> tensors;
    std::initializer_list<std::string_view> texts;
  };
  const SourceTensor weight = tensor("w", DType::F8_E4M3, {4, 40}, 0);
  for (const Case& bad : std::vector<Case>{
           {{weight}, {"w in first.safetensors (F8_E4M3 [4, 40])", "expected w_scale_inv"}},
           {{tensor("w", DType::F8_E5M2, {4, 40})},
            {"w in first.safetensors (F8_E5M2 [4, 40])", "w_scale_inv"}},
           {{weight, tensor("w_scale_inv", DType::U8, {4, 1}, 1)},
            {"w_scale_inv in second.safetensors (U8 [4, 1])", "[4, 2]", "[4, 40]"}},
           {{weight, tensor("w_scale_inv", DType::U8, {2, 4}, 1)}, {"(U8 [2, 4])", "[4, 2]"}},
           {{weight, tensor("w_scale_inv", DType::U8, {8}, 1)}, {"(U8 [8])", "[4, 2]"}},
           {{weight, tensor("w_scale_inv", DType::F32, {4, 2}, 1)},
            {"w_scale_inv in second.safetensors (F32 [4, 2])", "expected U8 or F8_E8M0 [4, 2]"}},
           {{tensor("w", DType::BF16, {4, 40}), tensor("w_scale_inv", DType::U8, {4, 2})},
            {"w in first.safetensors (BF16 [4, 40])", "F8_E4M3", "w_scale_inv"}},
           {{tensor("w", DType::F8_E5M2, {4, 40}), tensor("w_scale_inv", DType::U8, {4, 2})},
            {"F8_E5M2", "F8_E4M3"}},
           {{tensor("w", DType::F8_E4M3, {2, 2, 40}), tensor("w_scale_inv", DType::U8, {4, 2})},
            {"(F8_E4M3 [2, 2, 40])", "a matrix"}},
       }) {
    const Catalog catalog = catalog_of(bad.tensors);
    expect_error(ErrorKind::mismatch, bad.texts, [&] { encoding_of(catalog, catalog.find("w")); });
  }
}

}  // namespace
}  // namespace shardwright
