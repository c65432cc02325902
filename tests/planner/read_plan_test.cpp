#include "planner/load/read_plan.h"

#include <gtest/gtest.h>

#include "planner/error.h"
#include "tests/planner/random_checkpoint.h"

namespace shardwright {
namespace {

const std::string weight = "tower.proj.weight";

/// Which chunk of a tensor holds an element of the whole, and where in it.
std::pair<std::int64_t, Shape> place_of(const Catalog& catalog, const std::string& name, const Shape& at) {
  for (std::size_t t = 0; t < catalog.tensors.size(); ++t) {
    const SourceTensor& chunk = catalog.tensors[t];
    if (chunk.name != name || !holds({chunk.offset, chunk.shape}, at)) continue;
    Shape inside = at;
    for (std::size_t d = 0; d < inside.size(); ++d) inside[d] -= chunk.offset[d];
    return {static_cast<std::int64_t>(t), inside};
  }
  return {-1, {}};
}

/// Each element of a request's box is written once, with the scale that the definition gives it.
void expect_each_element_scaled(const LoadPlan& plan, const Catalog& catalog, const ReadRequest& request,
                                std::uint32_t destination, const Stored& scales) {
  std::vector<int> written(static_cast<std::size_t>(volume(request.box.size)), 0);
  for (const Transfer& transfer : plan.transfers) {
    if (transfer.destination != destination) continue;
    const SourceTensor& chunk = catalog.tensors.at(transfer.source);
    ASSERT_EQ(chunk.offset, request.chunk_offset);
    ASSERT_GE(transfer.scales, 0);
    const SourceTensor& scale_chunk = catalog.tensors.at(static_cast<std::size_t>(transfer.scales));
    ASSERT_EQ(scale_chunk.name, scales.name);
    for_each_index(transfer.source_box.size, [&](const Shape& step) {
      const Shape to = plus(step, transfer.destination_offset);
      ASSERT_EQ(plus(to, request.box.offset), plus(step, transfer.source_box.offset));
      ++written.at(flat(to, request.box.size));
      const Shape at = plus(plus(step, transfer.source_box.offset), chunk.offset);
      const ScaleElement expected = scale_element(scales.dtype, scales.shape, at);
      Shape found = transfer.scale_box.offset;
      if (found.size() == 2) {
        found = plus(found, {(step[0] + transfer.first_row_in_block) / transfer.encoding.block_rows,
                             (step[1] + transfer.first_column_in_block) / transfer.encoding.block_columns});
      }
      ASSERT_EQ(std::pair(transfer.scales, found), place_of(catalog, scales.name, expected.index));
      ASSERT_TRUE(holds(transfer.scale_box, found));
    });
  }
  EXPECT_EQ(written, std::vector<int>(written.size(), 1));
}

Box random_box(Random& random, const Shape& shape) {
  Box box;
  for (const std::int64_t size : shape) {
    box.offset.push_back(random.between(0, size - 1));
    box.size.push_back(random.between(1, size - box.offset.back()));
  }
  return box;
}

TEST(read_plan, slices_of_chunks_are_decoded_with_scales_that_lie_in_chunks_as_well) {
  Random random(1);
  int parts = 0;
  for (int round = 0; round < 200; ++round) {
    const Shape shape{random.between(1, 300), random.between(1, 300)};
    const Stored scales = random_scales(random, weight, shape);
    const Catalog catalog =
        catalog_of(random, {{weight, DType::F8_E4M3, shape, random_chunks(random, shape)}, scales});
    std::vector<ReadRequest> requests;
    std::vector<TensorSpec> specs;
    for (const SourceTensor& chunk : catalog.find(weight)) {
      requests.push_back({weight, chunk.offset, random_box(random, chunk.shape)});
      const DType dtype = random.one_of<DType>({DType::BF16, DType::F16, DType::F32, DType::F64});
      specs.push_back(whole_tensor(weight, dtype, requests.back().box.size));
    }
    const LoadPlan plan = plan_reads(requests, specs, catalog);
    parts += static_cast<int>(plan.transfers.size() - requests.size());
    for (std::uint32_t i = 0; i < requests.size(); ++i)
      expect_each_element_scaled(plan, catalog, requests[i], i, scales);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(parts, 20);  // boxes that had to be cut at the edges of chunks of scales
}

TEST(read_plan, the_stored_dtype_takes_no_scales) {
  Random random(2);
  const Stored scales = random_scales(random, weight, {40, 50});
  const Catalog catalog = catalog_of(random, {{weight, DType::F8_E4M3, {40, 50}, {whole({40, 50})}}, scales});
  const LoadPlan plan = plan_reads({{weight, {0, 0}, whole({40, 50})}},
                                   {whole_tensor(weight, DType::F8_E4M3, {40, 50})}, catalog);
  ASSERT_EQ(plan.transfers.size(), 1U);
  EXPECT_EQ(plan.transfers[0].scales, -1);
  EXPECT_FALSE(plan.transfers[0].encoding.scaled);
}

TEST(read_plan, chunks_of_scales_that_leave_a_hole_are_refused) {
  Random random(3);
  const Catalog catalog =
      catalog_of(random, {{weight, DType::F8_E4M3, {4, 96}, {whole({4, 96})}},
                          {weight + "_scale_inv", DType::U8, {4, 3}, {{{0, 0}, {4, 1}}, {{0, 2}, {4, 1}}}}});
  try {
    plan_reads({{weight, {0, 0}, whole({4, 96})}}, {whole_tensor(weight, DType::F32, {4, 96})}, catalog);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind, ErrorKind::mismatch);
    EXPECT_NE(std::string(error.what()).find(weight + "_scale_inv do not make up"), std::string::npos)
        << error.what();
  }
}

TEST(read_plan, what_is_wrong_is_told_once_for_each_tensor) {
  Random random(4);
  const Stored scales{weight + "_scale_inv", DType::F32, {7, 7}, {whole({7, 7})}};
  const Catalog catalog = catalog_of(random, {{weight, DType::F8_E4M3, {4, 96}, {whole({4, 96})}}, scales});
  std::vector<ReadRequest> requests;
  std::vector<TensorSpec> specs;
  for (std::int64_t row = 0; row < 4; ++row) {
    requests.push_back({weight, {0, 0}, {{row, 0}, {1, 96}}});
    specs.push_back(whole_tensor(weight, DType::BF16, {1, 96}));
  }
  try {
    plan_reads(requests, specs, catalog);
    FAIL();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("fits no known block shape"), std::string::npos) << message;
    EXPECT_EQ(message.find("fits no known"), message.rfind("fits no known")) << message;
  }
}

TEST(read_plan, which_tensors_need_scales) {
  Random random(5);
  const auto one = [](const std::string& name, DType dtype) {
    return Stored{name, dtype, {2}, {whole({2})}};
  };
  const Catalog catalog = catalog_of(
      random, {one("a.weight", DType::F8_E4M3), one("a.weight_scale", DType::F8_E4M3),
               one("b.weight", DType::BF16), one("b.weight_scale", DType::F32), one("c.weight", DType::I8),
               one("c.weight_scale", DType::F32), one("d.weight", DType::I8), one("e", DType::F8_E5M2)});
  std::string needing;
  for (const char* name : {"a.weight", "a.weight_scale", "b.weight", "c.weight", "d.weight", "e", "absent"})
    needing += needs_scales(catalog, name) ? std::string(name) + " " : "";
  EXPECT_EQ(needing, "a.weight c.weight e ");  // e, as others have some
  const Catalog alone = catalog_of(random, {one("e", DType::F8_E5M2), one("norm.scale", DType::F32)});
  EXPECT_FALSE(needs_scales(alone, "e"));
  const Catalog beside = catalog_of(random, {one("m.e", DType::F8_E5M2), one("m.e_scales", DType::F32)});
  EXPECT_TRUE(needs_scales(beside, "m.e"));
}

}  // namespace
}  // namespace shardwright
