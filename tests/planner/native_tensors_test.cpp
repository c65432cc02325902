#include <gtest/gtest.h>

#include "planner/models/models.h"
#include "planner/names/weight_map.h"
#include "tests/planner/released_model.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

TEST(native_tensors, the_released_model_fills_the_native_tensors_of_the_reference) {
  const Catalog catalog = preset_catalog("full");
  std::map<std::string, Shape> found;
  std::int64_t elements = 0;
  for (const NativeTensor& tensor : native_tensors(catalog, weight_map_for(catalog))) {
    EXPECT_TRUE(found.emplace(tensor.fqn, tensor.shape).second) << tensor.fqn;
    EXPECT_EQ(tensor.stacked, tensor.fqn.find(".mlp.experts.") != std::string::npos) << tensor.fqn;
    const bool is_bias = tensor.fqn.ends_with("e_score_correction_bias");
    EXPECT_EQ(tensor.dtype, is_bias ? DType::F32 : DType::BF16) << tensor.fqn;
    elements += volume(tensor.shape);
  }
  EXPECT_TRUE(found == released_shapes("minimax_m3_vl.native.txt"));
  EXPECT_EQ(found.size(), 1665U);
  EXPECT_EQ(elements / 100'000'000, 4345);
}

TEST(native_tensors, experts_that_files_have_stacked_are_a_stack_in_every_layout) {
  const Catalog catalog = catalog_of({
      {"model.layers.0.mlp.experts.gate_up_proj", DType::BF16, {4, 6, 8}},
      {"model.layers.0.mlp.experts.gate_up_proj_bias", DType::BF16, {4, 8}},
      {"model.layers.0.mlp.experts.down_proj", DType::BF16, {4, 4, 6}},
      {"model.layers.0.mlp.router.weight", DType::BF16, {4, 6}},
      {"model.layers.0.self_attn.sinks", DType::BF16, {2}},
  });
  for (const char* layout : {"automodel", "transformers", "torchtitan", "huggingface"}) {
    int stacks = 0;
    for (const NativeTensor& tensor : native_tensors(catalog, weight_map_for(catalog, "gpt_oss", layout)))
      stacks += tensor.stacked ? 1 : 0;
    EXPECT_EQ(stacks, 3) << layout;
  }
  const Catalog one_by_one = catalog_of(
      {{"a.experts.3.w1.weight", DType::BF16, {4, 6}}, {"a.shared_experts.w1.weight", DType::BF16, {4, 6}}});
  for (const NativeTensor& tensor :
       native_tensors(one_by_one, weight_map_for(one_by_one, "auto", "huggingface")))
    EXPECT_FALSE(tensor.stacked) << tensor.fqn;
}

TEST(native_tensors, block_scaled_weights_get_the_dtype_asked_for_and_others_keep_theirs) {
  const Catalog catalog = preset_catalog("tiny");
  std::map<std::string, DType> dtypes;
  for (const NativeTensor& tensor : native_tensors(catalog, weight_map_for(catalog), DType::F16))
    dtypes[tensor.fqn] = tensor.dtype;
  EXPECT_EQ(dtypes.at("model.layers.0.self_attn.q_proj.weight"), DType::F16);
  EXPECT_EQ(dtypes.at("model.layers.1.mlp.experts.down_projs"), DType::F16);
  EXPECT_EQ(dtypes.at("model.mtp.layers.0.eh_proj.weight"), DType::F16);
  EXPECT_EQ(dtypes.at("model.norm.weight"), DType::BF16);
  EXPECT_EQ(dtypes.at("model.layers.1.mlp.gate.e_score_correction_bias"), DType::F32);
}

TEST(native_tensors, an_absurd_expert_number_is_refused_before_anything_is_counted_by_it) {
  for (const std::string number : {"2", "9223372036854775807"}) {
    const std::string name =
        "language_model.model.layers.1.block_sparse_moe.experts." + number + ".w2.weight";
    const Catalog catalog =
        catalog_of({{"language_model.lm_head.weight", DType::BF16, {4, 4}}, {name, DType::BF16, {4, 4}}});
    expect_error(ErrorKind::malformed, {name, "model.safetensors", "2 tensors"},
                 [&] { native_tensors(catalog, weight_map_for(catalog)); });
  }
}

TEST(native_tensors, each_knows_its_layer_in_every_layout) {
  const Catalog catalog = preset_catalog("tiny");
  for (const char* layout : {"automodel", "transformers", "huggingface"}) {
    std::map<std::int64_t, int> count;
    for (const NativeTensor& tensor : native_tensors(catalog, weight_map_for(catalog, "auto", layout))) {
      const bool is_vision = tensor.fqn.find("vision") != std::string::npos ||
                             tensor.fqn.find("multi_modal_projector") != std::string::npos ||
                             tensor.fqn.find("patch_merge") != std::string::npos;
      const bool is_mtp = tensor.fqn.find("mtp.") != std::string::npos;
      const std::size_t layers = tensor.fqn.find("layers.");
      std::int64_t layer = after_layers;  // by the name: what is left is the norm and the head
      if (is_vision || tensor.fqn.find("embed_tokens") != std::string::npos) {
        layer = before_layers;
      } else if (!is_mtp && layers != std::string::npos) {
        layer = std::stoi(tensor.fqn.substr(layers + 7));
      }
      EXPECT_EQ(tensor.layer, layer) << layout << " " << tensor.fqn;
      ++count[tensor.layer];
    }
    EXPECT_EQ(count.size(), 5U) << layout;  // three layers, and what comes before and after them
  }
}

}  // namespace
}  // namespace shardwright
