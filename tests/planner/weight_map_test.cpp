
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "planner/geometry/correspondence.h"
#include "planner/models/models.h"
#include "planner/names/rule_pieces.h"
#include "tests/planner/random_layouts.h"
#include "tests/planner/released_model.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

WeightMap m3(const Catalog& catalog = {}) { return weight_map_for(catalog, "minimax_m3"); }

/// The native names and shapes that the reference lists for the released model.
const std::map<std::string, Shape>& released_native() {
  static const std::map<std::string, Shape> shapes = released_shapes("minimax_m3_vl.native.txt");
  return shapes;
}

TEST(weight_map, every_tensor_of_the_released_model_goes_into_one_native_tensor_and_comes_back) {
  ASSERT_EQ(released_native().size(), 1665U);
  const WeightMap map = m3();
  std::map<std::string, Shape> expected;                 // HF weights
  std::map<std::string, std::set<std::string>> sources;  // by native tensor
  for (const NamedShape& tensor : preset_tensors("full")) {
    const std::vector<NameMatch> matches = native_matches_of(map, tensor.name);
    ASSERT_TRUE(matches.size() == 1 && matches.front().rule->known) << tensor.name;
    ASSERT_TRUE(released_native().contains(matches.front().fqn))
        << tensor.name << " -> " << matches.front().fqn;
    if (tensor.name.ends_with("_scale_inv")) continue;
    expected[tensor.name] = tensor.shape;
    sources[matches.front().fqn].insert(tensor.name);
  }
  std::map<std::string, Shape> found;
  for (const auto& [fqn, shape] : released_native()) {
    std::set<std::string> names;
    std::int64_t elements = 0;
    for (const Piece& piece : pieces_of(map, fqn, shape)) {
      ASSERT_TRUE(found.emplace(piece.hf_name, piece.hf_shape).second) << piece.hf_name << " twice";
      names.insert(piece.hf_name);
      elements += volume(piece.hf_shape);
      ASSERT_EQ(volume(piece.native_box.size), volume(piece.hf_shape));
    }
    ASSERT_EQ(names, sources[fqn]) << fqn;
    ASSERT_EQ(elements, volume(shape)) << fqn;
  }
  EXPECT_TRUE(found == expected);
}

TEST(weight_map, each_native_element_is_in_one_piece) {
  const WeightMap map = m3();
  for (auto [fqn, shape] : released_native()) {
    for (std::int64_t& size : shape)
      size = 2 * ((size + 1023) / 1024);  // as many pieces meet as in the real one
    std::vector<int> count(static_cast<std::size_t>(volume(shape)), 0);
    for (const Piece& piece : pieces_of(map, fqn, shape)) {
      for_each_index(piece.native_box.size,
                     [&](const Shape& step) { ++count[flat(plus(step, piece.native_box.offset), shape)]; });
    }
    ASSERT_EQ(count, std::vector<int>(count.size(), 1)) << fqn;
  }
}

TEST(weight_map, grouped_experts_hold_the_transposed_matrices_gate_columns_before_up_columns) {
  const WeightMap map = m3();
  const std::string hf = "language_model.model.layers.3.block_sparse_moe.experts.";
  const std::vector<Piece> joined =
      pieces_of(map, "model.layers.3.mlp.experts.gate_and_up_projs", {2, 6, 10});
  ASSERT_EQ(joined.size(), 4U);
  for (std::int64_t e = 0; e < 2; ++e) {
    for (int part = 0; part < 2; ++part) {
      const Piece& piece = joined[static_cast<std::size_t>(2 * e + part)];
      EXPECT_EQ(piece.hf_name, hf + std::to_string(e) + (part == 0 ? ".w1.weight" : ".w3.weight"));
      EXPECT_EQ(piece.hf_shape, (Shape{5, 6}));
      EXPECT_EQ(piece.native_box, (Box{{e, 0, part * 5}, {1, 6, 5}}));
      EXPECT_EQ(piece.correspondence->axes, (std::vector<int>{2, 1}));
      EXPECT_EQ(piece.expert, e);
    }
  }
  const std::vector<Piece> down = pieces_of(map, "model.layers.3.mlp.experts.down_projs", {2, 5, 6});
  ASSERT_EQ(down.size(), 2U);
  EXPECT_EQ(down[1].hf_name, hf + "1.w2.weight");
  EXPECT_EQ(down[1].hf_shape, (Shape{6, 5}));
  EXPECT_EQ(down[1].correspondence->axes, (std::vector<int>{2, 1}));
}

TEST(weight_map, native_names_are_those_of_the_table_in_the_reference) {
  const WeightMap map = m3();
  const std::map<std::string, std::string> table = {
      {"language_model.model.layers.3.block_sparse_moe.gate.weight", "model.layers.3.mlp.gate.weight"},
      {"language_model.model.layers.3.block_sparse_moe.e_score_correction_bias",
       "model.layers.3.mlp.gate.e_score_correction_bias"},
      {"language_model.model.layers.3.block_sparse_moe.shared_experts.up_proj.weight",
       "model.layers.3.shared_experts.up_proj.weight"},
      {"language_model.model.layers.3.block_sparse_moe.experts.7.w3.weight_scale_inv",
       "model.layers.3.mlp.experts.gate_and_up_projs"},
      {"language_model.model.layers.3.block_sparse_moe.experts.7.w2.weight",
       "model.layers.3.mlp.experts.down_projs"},
      {"language_model.model.layers.3.self_attn.index_q_proj.weight",
       "model.layers.3.self_attn.indexer.index_q_proj.weight"},
      {"language_model.model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.gate_proj.weight"},
      {"language_model.lm_head.weight", "lm_head.weight"},
      {"multi_modal_projector.linear_1.bias", "vision_tower.multi_modal_projector.linear_1.bias"},
      {"patch_merge_mlp.linear_2.weight", "vision_tower.patch_merge_mlp.linear_2.weight"},
      {"vision_tower.vision_model.pre_layrnorm.bias", "vision_tower.vision_model.pre_layrnorm.bias"},
      {"language_model.model.mtp.layers.0.eh_proj.weight", "model.mtp.layers.0.eh_proj.weight"},
      {"language_model.model.mtp.layers.0.transformer_layer.block_sparse_moe.experts.0.w1.weight",
       "model.mtp.layers.0.transformer_layer.mlp.experts.gate_and_up_projs"},
      {"language_model.model.mtp.layers.0.transformer_layer.self_attn.index_k_norm.weight",
       "model.mtp.layers.0.transformer_layer.self_attn.indexer.index_k_norm.weight"},
  };
  for (const auto& [hf, native] : table) {
    const std::vector<NameMatch> matches = native_matches_of(map, hf);
    ASSERT_EQ(matches.size(), 1U) << hf;
    EXPECT_EQ(matches.front().fqn, native);
    EXPECT_TRUE(matches.front().rule->known) << hf;
  }
}

TEST(weight_map, a_text_checkpoint_may_lack_the_prefixes) {
  for (const std::string_view model : {"model.", ""}) {
    std::vector<NamedShape> text;
    std::map<std::string, std::string> spelling;  // full name -> as this checkpoint spells it
    for (const NamedShape& tensor : preset_tensors("tiny")) {
      std::string name = tensor.name;
      if (!name.starts_with("language_model.")) continue;
      name = name.substr(15);
      if (name.starts_with("model.")) name = std::string(model) + name.substr(6);
      spelling[tensor.name] = name;
      text.push_back({name, tensor.dtype, tensor.shape});
    }
    const WeightMap full = m3();
    const WeightMap map = m3(catalog_of(text));
    for (const auto& [full_name, name] : spelling) {
      const std::vector<NameMatch> matches = native_matches_of(map, name);
      ASSERT_TRUE(matches.size() == 1 && matches.front().rule->known) << name;
      ASSERT_EQ(matches.front().fqn, native_matches_of(full, full_name).at(0).fqn);
    }
    EXPECT_EQ(pieces_of(map, "lm_head.weight", {4, 4})[0].hf_name, "lm_head.weight");
    EXPECT_EQ(pieces_of(map, "model.norm.weight", {4})[0].hf_name, std::string(model) + "norm.weight");
    EXPECT_EQ(pieces_of(map, "model.layers.1.mlp.experts.down_projs", {1, 4, 4})[0].hf_name,
              std::string(model) + "layers.1.block_sparse_moe.experts.0.w2.weight");
    EXPECT_EQ(pieces_of(map, "model.mtp.layers.0.enorm.weight", {4})[0].hf_name,
              std::string(model) + "mtp.layers.0.enorm.weight");
    EXPECT_EQ(pieces_of(map, "vision_tower.patch_merge_mlp.linear_1.bias", {4})[0].hf_name,
              "patch_merge_mlp.linear_1.bias");
  }
}

TEST(weight_map, names_that_no_row_lists_are_not_known) {
  const WeightMap map = m3();
  for (const char* name :
       {"language_model.model.layers.3.block_sparse_moe.experts.0.w4.weight",
        "language_model.model.extra.weight", "language_model.model.layers.03.self_attn.q_proj.weight",
        "language_model.model.layers.3.self_attn.q_proj.bias", "language_model.lm_head.bias",
        "model.layers.0.self_attn.q_proj.weight", "optimizer.step", "vision_tower.x",
        "language_model.model.mtp.layers.0.other.weight",
        "language_model.model.layers.x.input_layernorm.weight"}) {
    const std::vector<NameMatch> matches = native_matches_of(map, name);
    EXPECT_FALSE(!matches.empty() && matches.front().rule->known) << name;
    EXPECT_FALSE(is_ignored(map, name)) << name;
  }
}

TEST(weight_map, mtp_outside_the_text_part_is_ignored) {
  const WeightMap map = m3();
  for (const char* name : {"mtp.layers.0.enorm.weight", "model.mtp.layers.0.eh_proj.weight_scale_inv"})
    EXPECT_TRUE(is_ignored(map, name)) << name;
  EXPECT_FALSE(is_ignored(map, "language_model.model.mtp.layers.0.enorm.weight"));
}

TEST(weight_map, the_rule_of_names_counts_what_the_reference_says_as_quantized) {
  const WeightMap map = m3();
  std::int64_t scaled = 0;
  const std::vector<NamedShape> tensors = preset_tensors("full");
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].name.ends_with("_scale_inv")) continue;
    const bool has_scale = i + 1 < tensors.size() && tensors[i + 1].name.ends_with("_scale_inv");
    const bool is_eh_proj = tensors[i].name == "language_model.model.mtp.layers.0.eh_proj.weight";
    ASSERT_EQ(native_matches_of(map, tensors[i].name).at(0).rule->quantized, has_scale && !is_eh_proj)
        << tensors[i].name;
    scaled += has_scale;
  }
  const std::map<std::string, Shape> released = released_shapes("minimax_m3_vl.hf.txt");
  EXPECT_EQ(scaled, std::count_if(released.begin(), released.end(),
                                  [](const auto& tensor) { return tensor.first.ends_with("_scale_inv"); }));
  const auto quantized = [&](const char* name) { return native_matches_of(map, name).at(0).rule->quantized; };
  EXPECT_TRUE(quantized("language_model.model.mtp.layers.0.transformer_layer.self_attn.q_proj.weight"));
  EXPECT_FALSE(quantized("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"));
  EXPECT_FALSE(quantized("vision_tower.vision_model.layers.0.self_attn.q_proj.weight"));
  EXPECT_FALSE(quantized("language_model.model.layers.3.self_attn.index_q_proj.weight"));
}

TEST(weight_map, shapes_that_cannot_be_what_the_rule_says_are_refused) {
  const WeightMap map = m3();
  const auto pieces = [&](const char* fqn, Shape shape) {
    return [&map, fqn, shape] { pieces_of(map, fqn, shape); };
  };
  const char* joined = "model.layers.3.mlp.experts.gate_and_up_projs";
  expect_error(ErrorKind::mismatch, {joined, "3 dimensions", "[4, 6]"}, pieces(joined, {4, 6}));
  expect_error(ErrorKind::mismatch, {joined, "multiple of 2", "[4, 6, 9]"}, pieces(joined, {4, 6, 9}));
  expect_error(ErrorKind::mismatch, {joined, "3 dimensions", "[]"}, pieces(joined, {}));
  const char* down = "model.layers.3.mlp.experts.down_projs";
  expect_error(ErrorKind::mismatch, {down, "3 dimensions", "[1, 4, 6, 8]"}, pieces(down, {1, 4, 6, 8}));
  EXPECT_TRUE(pieces_of(map, "no_such_tensor", {4}).empty());
}

TEST(weight_map, the_family_is_told_by_config_json_or_else_by_the_names) {
  Catalog catalog = preset_catalog("tiny");
  EXPECT_EQ(weight_map_for(catalog).family, "minimax_m3");
  for (const char* type : {"minimax_m3_vl", "minimax_m3_vl_text"}) {
    catalog.config = std::string("{\"model_type\": \"") + type + "\"}";
    EXPECT_EQ(weight_map_for(catalog).family, "minimax_m3");
  }
  for (const char* config : {"{}", "not json", "[]", "{\"model_type\": 3}"}) {
    catalog.config = config;
    EXPECT_EQ(weight_map_for(catalog).family, "minimax_m3") << config;
  }
  catalog.config = "{\"model_type\": \"gpt2\"}";
  expect_error(ErrorKind::mismatch, {"/checkpoint", "gpt2", "minimax_m3"}, [&] { weight_map_for(catalog); });
  EXPECT_EQ(weight_map_for(catalog, "minimax_m3").family, "minimax_m3");
  EXPECT_EQ(weight_map_for(catalog, "minimax_m3_vl").family, "minimax_m3");

  Catalog other = catalog_of({{"model.layers.0.self_attn.q_proj.weight", DType::BF16, {4, 4}}});
  expect_error(ErrorKind::mismatch, {"/checkpoint", "minimax_m3"}, [&] { weight_map_for(other); });
  expect_error(ErrorKind::argument, {"'gpt'", "auto", "minimax_m3"}, [&] { weight_map_for(other, "gpt"); });
  expect_error(ErrorKind::argument, {"'other'", "automodel"},
               [&] { weight_map_for(catalog, "minimax_m3", "other"); });
}

}  // namespace
}  // namespace shardwright
