#include "planner/names/axis_expression.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <stdexcept>

#include "planner/error.h"
#include "planner/geometry/correspondence.h"
#include "planner/names/resolved_axes.h"
#include "tests/planner/plain_lattice.h"
#include "tests/planner/random_layouts.h"

namespace shardwright {
namespace {

/// A tensor of numbers, row-major.
struct Tensor {
  Shape shape;
  std::vector<std::int64_t> values;

  explicit Tensor(Shape of, std::int64_t first = 0)
      : shape(std::move(of)), values(static_cast<std::size_t>(volume(shape))) {
    std::iota(values.begin(), values.end(), first);
  }
  std::int64_t& at(const Shape& index) { return values[flat(index, shape)]; }
  std::int64_t at(const Shape& index) const { return values[flat(index, shape)]; }
};

/// One rule of an operation: an HF tensor, and the expression that says where it goes.
struct Source {
  Tensor tensor;
  const char* text;
  std::int64_t expert = 0;
};

/// Fills a box of a native tensor of that shape from the sources, and nothing else.
Tensor filled(const Shape& native, const Box& box, const std::vector<Source>& sources, const Sizes& sizes,
              std::size_t& boxes) {
  Tensor result(native);
  std::fill(result.values.begin(), result.values.end(), -1);
  for (const Source& source : sources) {
    auto resolved = AxisExpression(source.text).resolve(source.tensor.shape, native, sizes);
    resolved.correspondence.native_box = resolved.native_box_of(source.expert, 0);
    EXPECT_EQ(fault_of(resolved.correspondence), "") << source.text;
    const View& view = resolved.correspondence.hf_view;
    const std::vector<Placed> placed = placed_in(resolved.correspondence, box);
    boxes = std::max(boxes, placed.size());
    for (const Placed& part : placed) {
      EXPECT_TRUE(lies_inside(part.in_native, box.size));
      for_each_index(part.hf_box.size, [&](const Shape& step) {
        const Shape to = plus(element_of(part.in_native, step), box.offset);
        EXPECT_EQ(result.at(to), -1) << "written twice";
        result.at(to) = source.tensor.at(index_in_tensor(view, plus(step, part.hf_box.offset)));
      });
    }
  }
  return result;
}

/// The operation's definition: the value of each native element.
using Definition = std::function<std::int64_t(const Shape&)>;

/// The whole tensor and 200 random shards of it are what the definition says, in few boxes.
void expect_operation(const Shape& native, const std::vector<Source>& sources, const Definition& definition,
                      const Sizes& sizes = {}) {
  Random random(7);
  std::size_t boxes = 0;
  for (int shard = 0; shard <= 200; ++shard) {
    const Box box = shard == 0 ? whole(native) : random_box(random, native, 1);
    const Tensor found = filled(native, box, sources, sizes, boxes);
    for_each_index(native, [&](const Shape& index) {
      ASSERT_EQ(found.at(index), holds(box, index) ? definition(index) : -1)
          << to_string(index) << " of " << to_string(box);
    });
  }
  EXPECT_LE(boxes, 9U);
}

constexpr std::int64_t H = 12;
constexpr std::int64_t I = 10;
constexpr std::int64_t E = 3;

/// Gates and ups of each expert: matrices [I, H].
Tensor gate(std::int64_t expert) { return Tensor({I, H}, 1000 * expert); }
Tensor up(std::int64_t expert) { return Tensor({I, H}, 1000 * expert + 500); }

std::vector<Source> of_each_expert(const char* of_gate, const char* of_up) {
  std::vector<Source> sources;
  for (std::int64_t e = 0; e < E; ++e) {
    sources.push_back({gate(e), of_gate, e});
    sources.push_back({up(e), of_up, e});
  }
  return sources;
}

// The operations of transformers, nemo-automodel, torchtitan and Megatron-Bridge, each against plain
// indexing.

TEST(axis_expression, stacks_and_joins_matrices_of_experts) {
  expect_operation({E, 2 * I, H}, of_each_expert("o i -> {expert} (0/2 o) i", "o i -> {expert} (1/2 o) i"),
                   [](const Shape& at) {
                     return at[1] < I ? gate(at[0]).at({at[1], at[2]}) : up(at[0]).at({at[1] - I, at[2]});
                   });
}

TEST(axis_expression, stacks_and_joins_them_transposed) {
  expect_operation({E, H, 2 * I}, of_each_expert("o i -> {expert} i (0/2 o)", "o i -> {expert} i (1/2 o)"),
                   [](const Shape& at) {
                     return at[2] < I ? gate(at[0]).at({at[2], at[1]}) : up(at[0]).at({at[2] - I, at[1]});
                   });
}

TEST(axis_expression, transposes_what_is_stacked) {
  const Tensor hf({E, 2 * I, H});
  expect_operation({E, H, 2 * I}, {{hf, "e o i -> e i o"}}, [&](const Shape& at) {
    return hf.at({at[0], at[2], at[1]});
  });
}

TEST(axis_expression, takes_a_half_of_what_is_stacked) {
  const Tensor hf({E, 2 * I, H});
  expect_operation({E, I, H}, {{hf, "e (1/2 o) i -> e o i"}}, [&](const Shape& at) {
    return hf.at({at[0], I + at[1], at[2]});
  });
}

TEST(axis_expression, takes_interleaved_rows_apart) {
  const Tensor hf({E, 2 * I, H});
  expect_operation({E, 2 * I, H}, {{hf, "e (i 2) h -> e (2 i) h"}}, [&](const Shape& at) {
    return hf.at({at[0], at[1] < I ? 2 * at[1] : 2 * (at[1] - I) + 1, at[2]});
  });
}

TEST(axis_expression, interleaves_rows) {
  const Tensor hf({E, 2 * I, H});
  expect_operation({E, 2 * I, H}, {{hf, "e (2 i) h -> e (i 2) h"}}, [&](const Shape& at) {
    return hf.at({at[0], at[1] % 2 * I + at[1] / 2, at[2]});
  });
}

TEST(axis_expression, takes_every_other_row_transposed) {
  const Tensor hf({E, 2 * I, H});
  expect_operation({E, H, I}, {{hf, "e (i 0/2) h -> e h i"}}, [&](const Shape& at) {
    return hf.at({at[0], 2 * at[2], at[1]});
  });
}

TEST(axis_expression, interleaves_matrices_of_experts) {
  expect_operation({E, 2 * I, H}, of_each_expert("o i -> {expert} (o 0/2) i", "o i -> {expert} (o 1/2) i"),
                   [](const Shape& at) {
                     return (at[1] % 2 == 0 ? gate(at[0]) : up(at[0])).at({at[1] / 2, at[2]});
                   });
}

TEST(axis_expression, permutes_for_the_rotary_embedding_and_back) {
  const std::int64_t heads = 3;
  const std::int64_t half = 4;
  const Tensor hf({heads * 2 * half, H});
  const auto row = [&](std::int64_t head, std::int64_t part, std::int64_t d, bool is_interleaved) {
    return head * 2 * half + (is_interleaved ? 2 * d + part : part * half + d);
  };
  expect_operation(hf.shape, {{hf, "(n d 2) c -> (n 2 d) c"}},
                   [&](const Shape& at) {
                     const std::int64_t in_head = at[0] % (2 * half);
                     return hf.at({row(at[0] / (2 * half), in_head / half, in_head % half, true), at[1]});
                   },
                   {{"n", heads}});
  expect_operation(hf.shape, {{hf, "(n 2 d) c -> (n d 2) c"}},
                   [&](const Shape& at) {
                     const std::int64_t in_head = at[0] % (2 * half);
                     return hf.at({row(at[0] / (2 * half), in_head % 2, in_head / 2, false), at[1]});
                   },
                   {{"n", heads}});
}

TEST(axis_expression, takes_a_part_of_unequal_ones) {
  const Tensor hf({24 + 12 + 12, H});
  expect_operation({12, H}, {{hf, "(q|[k]|v) c -> k c"}},
                   [&](const Shape& at) {
                     return hf.at({24 + at[0], at[1]});
                   },
                   {{"q", 24}});
  // The last one follows from the shapes as well.
  expect_operation({12, H}, {{hf, "(q|k|[v]) c -> v c"}},
                   [&](const Shape& at) {
                     return hf.at({36 + at[0], at[1]});
                   },
                   {{"q", 24}, {"k", 12}});
}

TEST(axis_expression, joins_queries_keys_and_values_of_each_group) {
  const Tensor q({4 * 6, H}, 0);
  const Tensor k({2 * 6, H}, 1000);
  const Tensor v({2 * 6, H}, 2000);
  const std::int64_t group = 4 * 6;  // rows: two queries, a key, a value
  expect_operation({48, H},
                   {{q, "(g m d) c -> (g [m]|1|1 d) c"},
                    {k, "(g 1 d) c -> (g m|[1]|1 d) c"},
                    {v, "(g 1 d) c -> (g m|1|[1] d) c"}},
                   [&](const Shape& at) {
                     const std::int64_t g = at[0] / group;
                     const std::int64_t in_group = at[0] % group;
                     if (in_group < 12) return q.at({g * 12 + in_group, at[1]});
                     if (in_group < 18) return k.at({g * 6 + in_group - 12, at[1]});
                     return v.at({g * 6 + in_group - 18, at[1]});
                   },
                   {{"g", 2}, {"m", 2}});
}

TEST(axis_expression, takes_a_part_of_each_shard) {
  // Two ranks' shards, each of queries, keys and values: rows 12, 6 and 6.
  const Tensor hf({48, H});
  expect_operation({24, H}, {{hf, "(t [q]|k|v) c -> (t q) c"}},
                   [&](const Shape& at) {
                     return hf.at({at[0] / 12 * 24 + at[0] % 12, at[1]});
                   },
                   {{"t", 2}, {"k", 6}, {"v", 6}});
  expect_operation({12, H}, {{hf, "(t q|k|[v]) c -> (t v) c"}},
                   [&](const Shape& at) {
                     return hf.at({at[0] / 6 * 24 + 18 + at[0] % 6, at[1]});
                   },
                   {{"t", 2}, {"q", 12}, {"k", 6}});
}

TEST(axis_expression, sees_a_kernel_as_a_matrix) {
  const Tensor hf({5, 3, 2, 2, 2});
  expect_operation({5, 24}, {{hf, "o c t h w -> o (c t h w)"}},
                   [&](const Shape& at) { return hf.values[static_cast<std::size_t>(24 * at[0] + at[1])]; });
}

TEST(axis_expression, squeezes) {
  const Tensor hf({1, 7});
  expect_operation({7}, {{hf, "1 e -> e"}}, [&](const Shape& at) { return hf.at({0, at[0]}); });
}

TEST(axis_expression, leaves_out_what_is_padded) {
  const Tensor hf({128});
  expect_operation({96}, {{hf, "[heads]|padding -> heads"}}, [&](const Shape& at) { return hf.at(at); });
}

TEST(axis_expression, joins_tensors_of_any_rank) {
  const Tensor q({6, 1, 4}, 0);
  const Tensor k({6, 1, 4}, 100);
  const Tensor v({6, 1, 4}, 200);
  expect_operation({18, 1, 4},
                   {{q, "c o k -> (0/3 c) o k"}, {k, "c o k -> (1/3 c) o k"}, {v, "c o k -> (2/3 c) o k"}},
                   [&](const Shape& at) {
                     return (at[0] < 6 ? q : at[0] < 12 ? k : v).at({at[0] % 6, at[1], at[2]});
                   });
}

TEST(axis_expression, leaves_all_as_it_is) {
  const Tensor hf({3, 4});
  const auto resolved = AxisExpression().resolve(hf.shape, std::nullopt);
  EXPECT_EQ(resolved.native_shape, hf.shape);
  EXPECT_EQ(placed_in(resolved.correspondence, {{1, 2}, {2, 2}}).at(0).hf_box, (Box{{1, 2}, {2, 2}}));
}

// What it says of shapes.

TEST(axis_expression, one_shape_follows_from_the_other) {
  EXPECT_EQ(AxisExpression("o i -> {expert} i (0/2 o)").resolve(std::nullopt, Shape{8, 6, 20}).hf_shape,
            (Shape{10, 6}));
  EXPECT_EQ(AxisExpression("o i -> {expert} i (0/2 o)")
                .resolve(Shape{10, 6}, std::nullopt, {{"{expert}", 8}})
                .native_shape,
            (Shape{8, 6, 20}));
  EXPECT_EQ(
      AxisExpression("(n 2 d) c -> (n d 2) c").resolve(Shape{24, 5}, std::nullopt, {{"n", 3}}).native_shape,
      (Shape{24, 5}));
  EXPECT_EQ(AxisExpression("e o i -> e i o").resolve(Shape{0, 4, 5}, std::nullopt).native_shape,
            (Shape{0, 5, 4}));
  EXPECT_TRUE(AxisExpression("o i -> {expert} i o").counts_experts());
  EXPECT_FALSE(AxisExpression("e o i -> e i o").counts_experts());
}

std::string refusal(const char* text, const std::optional<Shape>& hf, const std::optional<Shape>& native,
                    const Sizes& sizes = {}) {
  try {
    AxisExpression(text).resolve(hf, native, sizes);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::mismatch);
    return error.what();
  }
  return "not refused";
}

TEST(axis_expression, a_shape_that_does_not_fit_is_told) {
  EXPECT_NE(refusal("o i -> {expert} i (0/2 o)", std::nullopt, Shape{8, 6, 21}).find("a multiple of 2"),
            std::string::npos);
  EXPECT_NE(refusal("o i -> {expert} i (0/2 o)", std::nullopt, Shape{6, 21}).find("3 dimensions"),
            std::string::npos);
  EXPECT_NE(
      refusal("o i -> i o", Shape{4, 5}, Shape{4, 5}).find("expected 5 along dimension 0 of the native"),
      std::string::npos)
      << refusal("o i -> i o", Shape{4, 5}, Shape{4, 5});
  EXPECT_NE(refusal("(q|[k]|v) c -> k c", std::nullopt, Shape{4, 5}).find("cannot tell the size of "),
            std::string::npos);
  EXPECT_NE(refusal("(q|[k]|v) c -> k c", Shape{10, 5}, Shape{4, 5}, {{"q", 8}}).find("12 or more"),
            std::string::npos);
  EXPECT_NE(refusal("1 e -> e", Shape{2, 5}, std::nullopt).find("expected 1 along dimension 0"),
            std::string::npos);
}

TEST(axis_expression, text_that_is_none_is_refused) {
  for (const char* text : {"", "o i", "o i -> o", "o i -> o o", "o -> {expert", "{expert} o -> o",
                           "(o i -> o i", "() o -> o", "2/2 o -> o", "q|k -> k", "[q]|[k] -> q", "o$ -> o$",
                           "3 o -> o", "0 o -> 0 o", "x/2 o -> o", "o 2 -> o"}) {
    EXPECT_THROW(AxisExpression{text}, std::invalid_argument) << text;
  }
}

// The form itself, at random: any views, boxes and axes.

TEST(correspondence, a_random_one_places_what_its_definition_says) {
  Random random(11);
  for (int round = 0; round < 1500; ++round) {
    // Factors, of which some have no partner; then both sides' dimensions and boxes.
    Correspondence of;
    std::vector<std::int64_t> common;
    for (std::int64_t i = random.between(1, 4); i > 0; --i) common.push_back(random.between(1, 4));
    struct Slot {
      int partner;  ///< into common; -1: none
      std::int64_t size;
    };
    const auto side = [&](View& view, Box& box) {
      std::vector<Slot> slots;
      for (std::size_t i = 0; i < common.size(); ++i) slots.push_back({static_cast<int>(i), common[i]});
      for (std::int64_t i = random.between(0, 2); i > 0; --i) slots.push_back({-1, 1});
      random.shuffle(slots);
      int dimension = 0;
      for (std::size_t i = 0; i < slots.size(); ++i) {
        if (i > 0 && random.once_in(2)) ++dimension;
        const std::int64_t before = random.between(0, 2);
        view.sizes.push_back(before + slots[i].size + random.between(0, 2));
        view.dimensions.push_back(dimension);
        box.offset.push_back(before);
        box.size.push_back(slots[i].size);
      }
      return slots;
    };
    const std::vector<Slot> hf = side(of.hf_view, of.hf_box);
    const std::vector<Slot> native = side(of.native_view, of.native_box);
    for (const Slot& slot : hf) {
      const auto partner = std::find_if(native.begin(), native.end(), [&](const Slot& other) {
        return slot.partner >= 0 && other.partner == slot.partner;
      });
      of.axes.push_back(slot.partner < 0 ? -1 : static_cast<int>(partner - native.begin()));
    }
    ASSERT_EQ(fault_of(of), "");

    // The definition: native.view(native_view)[native_box] = hf.view(hf_view)[hf_box].permute(axes).
    const Tensor source(tensor_shape(of.hf_view), 1);
    Tensor expected(tensor_shape(of.native_view));
    std::fill(expected.values.begin(), expected.values.end(), 0);
    for_each_index(of.hf_box.size, [&](const Shape& step) {
      Shape to = of.native_box.offset;
      for (std::size_t i = 0; i < step.size(); ++i) {
        if (of.axes[i] >= 0) to[static_cast<std::size_t>(of.axes[i])] += step[i];
      }
      expected.values[flat(to, of.native_view.sizes)] =
          source.values[flat(plus(step, of.hf_box.offset), of.hf_view.sizes)];
    });

    const Box shard = random_box(random, expected.shape, 1);
    Tensor found(expected.shape);
    std::fill(found.values.begin(), found.values.end(), 0);
    for (const Placed& part : placed_in(of, shard)) {
      ASSERT_TRUE(lies_inside(part.in_native, shard.size));
      for_each_index(part.hf_box.size, [&](const Shape& step) {
        const Shape to = plus(element_of(part.in_native, step), shard.offset);
        ASSERT_EQ(found.at(to), 0);
        found.at(to) = source.at(index_in_tensor(of.hf_view, plus(step, part.hf_box.offset)));
      });
    }
    for_each_index(expected.shape, [&](const Shape& index) {
      ASSERT_EQ(found.at(index), holds(shard, index) ? expected.at(index) : 0);
    });
  }
}

}  // namespace
}  // namespace shardwright
