#include "planner/names/encodings.h"

#include <gtest/gtest.h>

#include <map>

#include "planner/names/companions.h"
#include "tests/planner/random_layouts.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

/// Blocks of any size, or one scale for the whole of a weight of this shape.
Encoding random_encoding(Random& random, const Shape& weight_shape) {
  Encoding encoding = encoding_with(random.one_of(known_encodings()), weight_shape);
  if (encoding.scale_rank < 2) {
    encoding.scale_rank = static_cast<int>(random.between(0, 2));
  } else if (!random.once_in(3)) {
    encoding.block_rows = random.between(1, 4);
    encoding.block_columns = random.between(1, 9);
  }
  return encoding;
}

Shape block_of(const Encoding& encoding, const Shape& element) {
  if (encoding.scale_rank < 2) return Shape(static_cast<std::size_t>(encoding.scale_rank), 0);
  return {element[0] / encoding.block_rows, element[1] / encoding.block_columns};
}

TEST(encodings, a_box_of_weights_needs_the_scales_of_its_elements_and_no_others) {
  Random random(1);
  for (int round = 0; round < 1000; ++round) {
    const Shape shape = {random.between(1, 9), random.between(1, 80)};
    const Encoding encoding = random_encoding(random, shape);
    const Shape scale_shape = scale_shape_of(encoding, shape);
    std::vector<bool> in_shape(static_cast<std::size_t>(volume(scale_shape)), false);
    for_each_index(shape,
                   [&](const Shape& at) { in_shape[flat(block_of(encoding, at), scale_shape)] = true; });
    ASSERT_EQ(std::count(in_shape.begin(), in_shape.end(), false), 0) << to_string(shape);

    const Box box = random_box(random, shape, encoding.scale_rank == 0 ? 1 : 0);  // a scalar is never empty
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

TEST(encodings, a_box_of_scales_serves_the_elements_of_its_blocks) {
  Random random(2);
  for (int round = 0; round < 1000; ++round) {
    const Shape shape = {random.between(1, 9), random.between(1, 80)};
    const Encoding encoding = random_encoding(random, shape);
    const Box scales = random_box(random, scale_shape_of(encoding, shape), 1);
    const Box served = weight_box_of(encoding, scales, shape);
    for_each_index(
        shape, [&](const Shape& at) { ASSERT_EQ(holds(served, at), holds(scales, block_of(encoding, at))); });
    ASSERT_EQ(intersection(served, whole(shape)), served);
  }
}

TEST(encodings, the_name_of_the_scale_is_the_weights_with_a_suffix) {
  EXPECT_EQ(scale_names_of("a.weight"), (std::vector<std::string>{"a.weight_scale_inv", "a.weight_scale"}));
  EXPECT_EQ(scale_names_of("a.experts"), std::vector<std::string>{"a.experts_scale_inv"});
  for (const char* name : {"a.weight_scale_inv", "a.weight_scale"}) {
    EXPECT_TRUE(is_scale_name(name));
    EXPECT_EQ(weight_name_of(name), "a.weight");
  }
  for (const char* name :
       {"a.weight", "a.weight_scale_inv.x", "a.layer_scale", "weight_scale", "a.input_scale"}) {
    EXPECT_FALSE(is_scale_name(name)) << name;
    EXPECT_EQ(weight_name_of(name), name);
  }
}

TEST(encodings, where_several_blocks_fit_they_say_the_same_of_every_element) {
  const auto share = [](const auto& some, const auto& others) {
    return std::any_of(some.begin(), some.end(), [&](DType dtype) {
      return std::find(others.begin(), others.end(), dtype) != others.end();
    });
  };
  std::size_t both = 0;
  for (const KnownEncoding& one : known_encodings()) {
    for (const KnownEncoding& other : known_encodings()) {
      const bool may_both_fit = share(one.dtypes, other.dtypes) && share(one.elements, other.elements) &&
                                one.global_suffix == other.global_suffix;
      if (&one == &other || !may_both_fit) continue;
      for (std::int64_t rows = 1; rows < 300; ++rows) {
        for (std::int64_t columns = 1; columns < 300; ++columns) {
          const Shape shape = {rows, columns};
          Encoding first = encoding_with(one, shape);
          Encoding second = encoding_with(other, shape);
          first.scale_rank = second.scale_rank = 2;  // which a scale for the whole tensor may have
          const Shape grid = scale_shape_of(first, shape);
          if (grid != scale_shape_of(second, shape)) continue;
          ++both;
          for (std::size_t d = 0; d < 2; ++d)
            ASSERT_TRUE(grid[d] == 1 || block_along(first, 2, d) == block_along(second, 2, d))
                << one.name << other.name << to_string(shape);
          ASSERT_EQ(one.product, other.product);
        }
      }
    }
  }
  EXPECT_GT(both, 128U * 128);
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

TEST(encodings, stacks_have_scales_for_each_matrix_along_dimensions_of_their_own_or_none) {
  struct Case {
    DType scale;
    Shape shape;
    std::int64_t block_rows;
    std::int64_t block_columns;
  };
  const Shape weight = {5, 293, 200};
  for (const Case& known : std::vector<Case>{{DType::U8, {5, 293, 7}, 1, 32},
                                             {DType::F32, {5, 3, 2}, 128, 128},
                                             {DType::F8_E8M0, {5, 3, 2}, 128, 128},
                                             {DType::BF16, {5, 1, 1}, 293, 200},
                                             {DType::F32, {5, 1}, 293, 200},
                                             {DType::F32, {5}, 293, 200},
                                             {DType::F32, {}, 293, 200},
                                             {DType::BF16, {5, 293, 1}, 1, 200},
                                             {DType::BF16, {5, 293}, 1, 200},
                                             {DType::F32, {5, 4, 2}, 128, 128}}) {
    const Catalog catalog = catalog_of(
        {tensor("a.weight", DType::F8_E4M3, weight), tensor("a.weight_scale_inv", known.scale, known.shape)});
    const Encoding found = encoding_of(catalog, catalog.find("a.weight"));
    EXPECT_EQ(found.block_rows, known.block_rows) << to_string(known.shape);
    EXPECT_EQ(found.block_columns, known.block_columns) << to_string(known.shape);
    EXPECT_EQ(found.scale_rank, std::ssize(known.shape)) << to_string(known.shape);
  }
  for (const Shape& other :
       std::vector<Shape>{{4, 3, 2}, {1, 1, 1}, {1}, {5, 5, 2}, {5, 3, 3}, {5, 293, 2}}) {
    const Catalog catalog = catalog_of(
        {tensor("a.weight", DType::F8_E4M3, weight), tensor("a.weight_scale_inv", DType::F32, other)});
    expect_error(ErrorKind::mismatch, {"a.weight_scale_inv", to_string(other)},
                 [&] { encoding_of(catalog, catalog.find("a.weight")); });
  }
}

TEST(encodings, rows_of_scales_that_may_be_those_of_equal_parts_are_refused) {
  for (const auto& [rows, found] : {std::pair{768, 8}, std::pair{300, 4}}) {
    const Catalog catalog = catalog_of({tensor("a.weight", DType::F8_E4M3, {rows, 200}),
                                        tensor("a.weight_scale_inv", DType::F32, {found, 2})});
    expect_error(ErrorKind::mismatch,
                 {"a.weight_scale_inv in ", std::to_string(found) + " rows of scales", "parts of"},
                 [&] { encoding_of(catalog, catalog.find("a.weight")); });
  }
}

TEST(encodings, the_presence_of_the_scales_decides) {
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

TEST(encodings, dtype_and_shape_of_the_scales_say_which_encoding_it_is) {
  struct Case {
    DType scale;
    Shape shape;
    std::int64_t block_rows;
    std::int64_t block_columns;
  };
  const Shape weight = {300, 200};
  for (const Case& known : std::vector<Case>{{DType::U8, {300, 7}, 1, 32},
                                             {DType::F8_E8M0, {300, 7}, 1, 32},
                                             {DType::F32, {3, 2}, 128, 128},
                                             {DType::BF16, {3, 2}, 128, 128},
                                             {DType::F32, {}, 300, 200},
                                             {DType::F32, {1}, 300, 200},
                                             {DType::F32, {1, 1}, 300, 200},
                                             {DType::BF16, {}, 300, 200}}) {
    for (const DType element : {DType::F8_E4M3, DType::F8_E5M2}) {
      for (const std::string_view suffix : {"_scale_inv", "_scale"}) {
        const Catalog catalog =
            catalog_of({tensor("a.weight", element, weight),
                        tensor("a.weight" + std::string(suffix), known.scale, known.shape)});
        const Encoding found = encoding_of(catalog, catalog.find("a.weight"));
        Encoding expected{element,
                          true,
                          known.scale,
                          known.block_rows,
                          known.block_columns,
                          static_cast<int>(known.shape.size()),
                          suffix};
        if (bytes_of(known.scale) > 1) expected.product = Product::to_f32_first;
        EXPECT_EQ(found, expected) << to_string(known.shape);
        EXPECT_EQ(scale_shape_of(found, weight), known.shape);
      }
    }
  }
}

TEST(encodings, weights_are_counted_by_encoding) {
  const Catalog catalog =
      catalog_of({tensor("a", DType::F8_E4M3, {300, 200}), tensor("a_scale_inv", DType::F32, {3, 2}),
                  tensor("b.weight", DType::F8_E4M3, {2, 1}, 0, {0, 0}),
                  tensor("b.weight", DType::F8_E4M3, {2, 1}, 0, {0, 1}),
                  tensor("b.weight_scale", DType::BF16, {}), tensor("c", DType::F8_E5M2, {2, 2}),
                  tensor("c_scale_inv", DType::F32, {2, 2}), tensor("d", DType::BF16, {2, 2}),
                  tensor("e", DType::F8_E4M3, {2, 2}), tensor("e_scale_inv", DType::U8, {2, 1}),
                  tensor("f", DType::F8_E4M3, {2, 2}), tensor("f_scale_inv", DType::F8_E8M0, {2, 1})});
  EXPECT_EQ(scaled_weights(catalog), (std::map<std::string, std::int64_t>{
                                         {"block_fp8", 1}, {"mxfp8", 2}, {"tensor_fp8", 1}, {"unknown", 1}}));
}

TEST(encodings, scales_that_are_missing_or_do_not_fit_are_named_with_their_file) {
  struct Case {
    std::vector<SourceTensor> tensors;
    std::vector<std::string_view> texts;
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
           {{tensor("w", DType::F8_E4M3, {300, 200}), tensor("w_scale_inv", DType::F32, {3, 3}, 1)},
            {"w_scale_inv in second.safetensors (F32 [3, 3])", "w in first.safetensors (F8_E4M3 [300, 200])",
             "expected U8 or F8_E8M0 [300, 7] (one for each 1 x 32 block) or F32 or BF16 [3, 2] (one for "
             "each 128 "
             "x 128 block) or F32 or BF16 [] (one for the whole tensor)",
             "convert the checkpoint"}},
           {{weight, tensor("w_scale_inv", DType::F32, {2}, 1)},
            {"(F32 [2])", "F32 or BF16 [] (one for the whole"}},
           {{weight, tensor("w_scale_inv", DType::F16, {}, 1)}, {"(F16 [])", "F32 or BF16 []"}},
           {{weight, tensor("w_scale_inv", DType::U8, {}, 1)}, {"(U8 [])", "U8 or F8_E8M0 [4, 2]"}},
           {{weight, tensor("w_scale_inv", DType::F32, {1, 1, 1}, 1)}, {"(F32 [1, 1, 1])"}},
           {{tensor("w", DType::F8_E4M3, {2, 2, 40}), tensor("w_scale_inv", DType::U8, {4, 2})},
            {"(F8_E4M3 [2, 2, 40])", "U8 or F8_E8M0 [2, 2, 2]"}},
           {{tensor("w", DType::F8_E4M3, {40}), tensor("w_scale_inv", DType::F32, {})},
            {"(F8_E4M3 [40])", "a matrix"}},
       }) {
    const Catalog catalog = catalog_of(bad.tensors);
    for (const std::string_view text : bad.texts)
      expect_error(ErrorKind::mismatch, {text}, [&] { encoding_of(catalog, catalog.find("w")); });
  }
}

TEST(encodings, scales_under_two_names_are_refused_since_one_of_them_would_be_passed_over) {
  const Catalog catalog =
      catalog_of({tensor("a.weight", DType::F8_E4M3, {4, 40}), tensor("a.weight_scale", DType::F32, {}, 1),
                  tensor("a.weight_scale_inv", DType::U8, {4, 2})});
  expect_error(ErrorKind::mismatch,
               {"a.weight in first.safetensors", "a.weight_scale in second.safetensors (F32 [])",
                "a.weight_scale_inv in first.safetensors (U8 [4, 2])"},
               [&] { encoding_of(catalog, catalog.find("a.weight")); });
}

}  // namespace
}  // namespace shardwright
