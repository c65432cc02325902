#include "planner/names/held_tensors.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "planner/error.h"
#include "planner/models/models.h"
#include "planner/names/weight_map.h"
#include "tests/planner/released_model.h"

namespace shardwright {
namespace {

Catalog only(const Catalog& catalog, bool (*keep)(const std::string&)) {
  Catalog part = catalog;
  std::erase_if(part.tensors, [&](const SourceTensor& tensor) { return !keep(tensor.name); });
  return part;
}

TEST(held_tensors, of_a_whole_checkpoint_are_its_native_tensors) {
  const Catalog catalog = preset_catalog("tiny");
  const WeightMap map = weight_map_for(catalog);
  const std::vector<HeldTensor> held = held_tensors(catalog, map, 4);
  const std::vector<NativeTensor> natives = native_tensors(catalog, map);
  ASSERT_EQ(held.size(), natives.size());
  for (std::size_t i = 0; i < held.size(); ++i) {
    EXPECT_EQ(held[i].fqn, natives[i].fqn);
    EXPECT_EQ(held[i].shape, natives[i].shape);
    EXPECT_EQ(held[i].stacked, natives[i].stacked);
  }
}

TEST(held_tensors, list_the_other_stack_of_a_layer_that_has_one) {
  const Catalog catalog = only(preset_catalog("tiny"), [](const std::string& name) {
    return name.find("layers.1.block_sparse_moe.experts.2.w2.") != std::string::npos;
  });
  const WeightMap map = weight_map_for(catalog, "minimax_m3");
  const std::vector<HeldTensor> held = held_tensors(catalog, map, 4);
  ASSERT_EQ(held.size(), 2U);
  EXPECT_EQ(held[0].sources.size(), 1U);
  EXPECT_EQ(held[1].fqn, "model.layers.1.mlp.experts.gate_and_up_projs");
  EXPECT_TRUE(held[1].sources.empty());
  EXPECT_EQ(held[1].experts, std::vector<std::int64_t>{2});
  const std::vector<std::string> missing = missing_weights(catalog, map, held[1].fqn, 2, 3);
  EXPECT_EQ(missing,
            (std::vector<std::string>{"language_model.model.layers.1.block_sparse_moe.experts.2.w1.weight",
                                      "language_model.model.layers.1.block_sparse_moe.experts.2.w3.weight"}));
}

TEST(held_tensors, refuse_scales_without_their_weights) {
  const Catalog catalog =
      only(preset_catalog("tiny"), [](const std::string& name) { return name.ends_with("_scale_inv"); });
  EXPECT_THROW(held_tensors(catalog, weight_map_for(catalog, "minimax_m3")), Error);
}

TEST(held_tensors, refuse_two_hf_tensors_for_one_place) {
  Catalog catalog = preset_catalog("tiny");
  catalog.tensors.push_back(
      {"model.norm.weight", DType::BF16, {64}, {0}});  // beside language_model.model.norm
  try {
    held_tensors(catalog, weight_map_for(catalog));
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(
        error.what(),
        "model.norm.weight: expected one HF tensor for it, found language_model.model.norm.weight and "
        "model.norm.weight; remove what is not meant");
  }
}

TEST(held_tensors, that_no_rule_knows_keep_their_names) {
  Catalog catalog;
  catalog.files = {{"memory", 0}};
  catalog.tensors.push_back({"what.is.this", DType::F32, {3}, {0}});
  const std::vector<HeldTensor> held = held_tensors(catalog, unchanged_names());
  ASSERT_EQ(held.size(), 1U);
  EXPECT_EQ(held[0].fqn, "what.is.this");
  EXPECT_TRUE(held[0].as_it_is);
}

}  // namespace
}  // namespace shardwright
