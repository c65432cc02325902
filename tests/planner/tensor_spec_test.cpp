#include "planner/names/tensor_spec.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/planner/random_layouts.h"

namespace shardwright {
namespace {

std::vector<std::uint8_t> memory(1 << 16);

/// The addresses of all bytes of all elements, as often as they occur.
std::multiset<std::intptr_t> bytes_of_elements(const TensorSpec& spec) {
  std::multiset<std::intptr_t> bytes;
  for_each_index(spec.local_shape, [&](const Shape& index) {
    std::int64_t offset = 0;
    for (std::size_t d = 0; d < index.size(); ++d) offset += index[d] * spec.local_strides[d];
    for (int byte = 0; byte < bytes_of(spec.dtype); ++byte)
      bytes.insert(reinterpret_cast<std::intptr_t>(spec.data) + offset * bytes_of(spec.dtype) + byte);
  });
  return bytes;
}

bool share(const TensorSpec& a, const TensorSpec& b) {
  const std::multiset<std::intptr_t> of_a = bytes_of_elements(a);
  const std::multiset<std::intptr_t> of_b = bytes_of_elements(b);
  return std::any_of(of_a.begin(), of_a.end(), [&](std::intptr_t byte) { return of_b.contains(byte); });
}

bool has_repeats(const std::multiset<std::intptr_t>& bytes) {
  return std::set<std::intptr_t>(bytes.begin(), bytes.end()).size() != bytes.size();
}

TensorSpec view(DType dtype, const Shape& shape, const Shape& strides, std::int64_t offset) {
  TensorSpec spec = whole_tensor("view", dtype, shape, memory.data() + memory.size() / 2 + offset);
  spec.local_strides = strides;
  return spec;
}

TEST(tensor_spec, elements_that_share_memory_are_found_for_any_strides) {
  Random random(1);
  int shared = 0;
  for (int round = 0; round < 5000; ++round) {
    const Shape shape = random_shape(random, random.between(0, 3), 0, 5);
    Shape strides;
    for (std::size_t d = 0; d < shape.size(); ++d) strides.push_back(random.between(-12, 12));
    const TensorSpec spec =
        view(random.one_of<DType>({DType::BF16, DType::F32, DType::U8}), shape, strides, 0);
    const bool expected = has_repeats(bytes_of_elements(spec));
    const std::string fault = fault_of(spec);
    ASSERT_EQ(fault.find("share memory") != std::string::npos, expected)
        << to_string(shape) << " " << to_string(strides) << ": " << fault;
    ASSERT_EQ(fault.empty(), !expected);
    shared += expected;
  }
  EXPECT_GT(shared, 500);
}

TEST(tensor_spec, slices_and_transposes_of_a_contiguous_tensor_share_nothing) {
  Random random(2);
  for (int round = 0; round < 500; ++round) {
    const Shape shape = random_shape(random, random.between(1, 4), 1, 5);
    TensorSpec spec = view(DType::F32, random_box(random, shape, 0).size, contiguous_strides(shape), 0);
    for (std::size_t d = shape.size(); d > 1; --d) {
      const auto other = static_cast<std::size_t>(random.between(0, static_cast<std::int64_t>(d) - 1));
      std::swap(spec.local_shape[d - 1], spec.local_shape[other]);
      std::swap(spec.local_strides[d - 1], spec.local_strides[other]);
    }
    spec = view(DType::F32, spec.local_shape, spec.local_strides, 0);
    ASSERT_EQ(fault_of(spec), "");
  }
}

TEST(tensor_spec, an_expanded_view_is_refused_with_its_shape_and_strides) {
  const std::string fault = fault_of(view(DType::BF16, {3, 4}, {0, 1}, 0));
  for (const char* text : {"[3, 4]", "[0, 1]", "expanded"})
    EXPECT_NE(fault.find(text), std::string::npos) << fault;
  EXPECT_EQ(fault_of(view(DType::BF16, {1, 4}, {0, 1}, 0)), "");
}

TEST(tensor_spec, two_tensors_that_share_a_byte_are_named_and_no_others) {
  Random random(3);
  int pairs = 0;
  for (int round = 0; round < 1500; ++round) {
    std::vector<TensorSpec> specs;
    for (std::int64_t n = random.between(2, 5); n > 0; --n) {
      // Slices of one 12 x 16 buffer, mostly: interleaved columns, rows, overlaps; some mirrored or of
      // another dtype.
      const Box slice = random_box(random, {12, 16}, 0);
      const std::int64_t step = random.between(1, 2);
      TensorSpec spec = view(random.one_of<DType>({DType::BF16, DType::BF16, DType::F32, DType::U8}),
                             {slice.size[0], slice.size[1] / step}, {16, step},
                             2 * (slice.offset[0] * 16 + slice.offset[1]) + random.between(0, 1));
      if (random.once_in(4)) spec.local_strides[0] = -16;
      if (random.once_in(4)) std::swap(spec.local_strides[0], spec.local_strides[1]);
      spec.fqn = "t" + std::to_string(n);
      specs.push_back(spec);
    }
    std::set<std::string> expected;
    for (std::size_t a = 0; a < specs.size(); ++a) {
      for (std::size_t b = 0; b < a; ++b) {
        if (share(specs[a], specs[b]))
          expected.insert(std::min(specs[a].fqn, specs[b].fqn) + std::max(specs[a].fqn, specs[b].fqn));
      }
    }
    std::set<std::string> found;
    for (const std::string& fault : shared_memory(specs)) {
      const std::string first = fault.substr(0, 2);
      const std::string second = fault.substr(fault.find(" and ") + 5, 2);
      ASSERT_TRUE(found.insert(std::min(first, second) + std::max(first, second)).second) << fault;
    }
    ASSERT_EQ(found, expected) << "round " << round;
    pairs += static_cast<int>(expected.size());
  }
  EXPECT_GT(pairs, 500);
}

TEST(tensor_spec, left_and_right_columns_of_one_buffer_share_nothing) {
  std::vector<TensorSpec> halves = {view(DType::BF16, {100, 8}, {16, 1}, 0),
                                    view(DType::BF16, {100, 8}, {16, 1}, 16)};
  EXPECT_TRUE(shared_memory(halves).empty());
  halves[1].data = static_cast<std::uint8_t*>(halves[1].data) - 1;
  EXPECT_EQ(shared_memory(halves).size(), 1U);
}

TEST(tensor_spec, two_large_column_halves_are_told_apart_without_a_map_of_their_bytes) {
  // Addresses only; nothing is read. 64 GB each: a map with a bit for each byte would take 8 GB and minutes.
  TensorSpec left = view(DType::BF16, {1 << 14, 1 << 21}, {1 << 22, 1}, 0);
  TensorSpec right = left;
  right.data = static_cast<std::uint8_t*>(left.data) + (std::int64_t{1} << 22);
  EXPECT_TRUE(shared_memory({left, right}).empty());
  right.data = static_cast<std::uint8_t*>(right.data) - 2;
  EXPECT_EQ(shared_memory({left, right}).size(), 1U);
}

TEST(tensor_spec, tensors_without_memory_or_elements_share_nothing) {
  const TensorSpec planned = whole_tensor("planned", DType::BF16, {4, 4});
  const TensorSpec empty = view(DType::BF16, {4, 0}, {4, 1}, 0);
  EXPECT_TRUE(shared_memory({planned, planned, empty, empty, view(DType::BF16, {4, 4}, {4, 1}, 0)}).empty());
}

TEST(tensor_spec, what_cannot_be_written_to_is_told) {
  const TensorSpec good = whole_tensor("t", DType::BF16, {4, 6});
  EXPECT_EQ(fault_of(good), "");
  const auto expect_fault = [&](const char* text, const std::function<void(TensorSpec&)>& change) {
    TensorSpec bad = good;
    change(bad);
    EXPECT_NE(fault_of(bad).find(text), std::string::npos) << text << " in " << fault_of(bad);
  };
  expect_fault("meta device", [](TensorSpec& spec) { spec.device = DeviceKind::meta; });
  expect_fault("cuda:1", [](TensorSpec& spec) {
    spec.device = DeviceKind::other;
    spec.device_name = "cuda:1";
  });
  expect_fault("rank", [](TensorSpec& spec) { spec.local_shape = {24}; });
  expect_fault("rank", [](TensorSpec& spec) { spec.local_strides = {1}; });
  expect_fault("leaves the global shape [4, 6]",
               [](TensorSpec& spec) { spec.boxes[0].global.offset[1] = 1; });
  expect_fault("leaves the global shape", [](TensorSpec& spec) { spec.boxes[0].global.offset[0] = -1; });
  expect_fault("local shape [3, 6]", [](TensorSpec& spec) { spec.local_shape[0] = 3; });
  expect_fault("rank of its global", [](TensorSpec& spec) { spec.boxes[0].local_offset = {0}; });
  expect_fault("rank of its global", [](TensorSpec& spec) { spec.boxes[0].global.offset = {0, 0, 0}; });
  expect_fault("6 of 30 elements", [](TensorSpec& spec) { spec.local_shape[0] = 5; });
  expect_fault("written twice", [](TensorSpec& spec) { spec.boxes.push_back(spec.boxes[0]); });
  expect_fault("have no source", [](TensorSpec& spec) { spec.boxes.clear(); });
}

TEST(tensor_spec, a_sharded_tensor_is_described_as_its_index_lists_say) {
  Random random(4);
  for (int round = 0; round < 300; ++round) {
    const Shape shape = random_shape(random, random.between(0, 3), 0, 12);
    const Mesh mesh = random_mesh(random, std::ssize(shape));
    for_each_index(mesh.shape, [&](const Shape& coordinate) {
      const TensorSpec spec = sharded_tensor("t", DType::F32, shape, mesh.shape, coordinate, mesh.placements);
      ASSERT_EQ(spec.local_shape, shape_of(index_lists(shape, mesh, coordinate)));
      ASSERT_EQ(spec.local_strides, contiguous_strides(spec.local_shape));
      ASSERT_EQ(spec.global_shape, shape);
      ASSERT_EQ(fault_of(spec), "");
    });
  }
}

}  // namespace
}  // namespace shardwright
