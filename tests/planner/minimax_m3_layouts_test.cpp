/// The layouts beside "automodel", which weight_map_test.cpp speaks of.
/// tests/data/minimax_m3_vl.transformers.txt lists the state dict of the released model in transformers 5.23;
/// layout "huggingface" has the names of the checkpoint.

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "planner/geometry/correspondence.h"
#include "planner/load/load_plan.h"
#include "planner/load/request_list.h"
#include "planner/models/models.h"
#include "planner/names/mesh.h"
#include "planner/names/rule_pieces.h"
#include "planner/names/weight_map.h"
#include "tests/planner/random_layouts.h"
#include "tests/planner/released_model.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

using Shapes = std::map<std::string, Shape>;

WeightMap m3(std::string_view layout, const Catalog& catalog = {}) {
  return weight_map_for(catalog, "minimax_m3", layout);
}

/// The weights among these tensors, without their scales.
Shapes weights_of(const std::vector<NamedShape>& tensors) {
  Shapes weights;
  for (const NamedShape& tensor : tensors) {
    if (!tensor.name.ends_with("_scale_inv")) weights[tensor.name] = tensor.shape;
  }
  return weights;
}

Shapes native_shapes(std::string_view layout, const std::vector<NamedShape>& tensors) {
  const Catalog catalog = catalog_of(tensors);
  Shapes shapes;
  for (const NativeTensor& tensor : native_tensors(catalog, m3(layout, catalog)))
    EXPECT_TRUE(shapes.emplace(tensor.fqn, tensor.shape).second) << tensor.fqn;
  return shapes;
}

bool is_mtp(const std::string& name) { return name.find(".mtp.") != std::string::npos; }

/// As a text-only checkpoint has it: its text part alone, names beginning with `model` where VL's do with
/// "language_model.model.".
std::vector<NamedShape> text_only(std::string_view preset, const std::string& model) {
  const std::string language_model = "language_model.";
  std::vector<NamedShape> text;
  for (NamedShape tensor : preset_tensors(preset)) {
    if (!tensor.name.starts_with(language_model)) continue;
    tensor.name = tensor.name.substr(language_model.size());
    if (tensor.name.starts_with("model.")) tensor.name = model + tensor.name.substr(6);
    text.push_back(tensor);
  }
  return text;
}

TEST(minimax_m3_layouts, transformers_names_and_shapes_are_those_of_its_own_state_dict) {
  const Shapes expected = released_shapes("minimax_m3_vl.transformers.txt");
  EXPECT_EQ(expected.size(), 1582U);
  EXPECT_TRUE(native_shapes("transformers", preset_tensors("full")) == expected);
}

TEST(minimax_m3_layouts, huggingface_names_and_shapes_are_the_checkpoints) {
  for (const char* preset : {"tiny", "full"})
    EXPECT_TRUE(native_shapes("huggingface", preset_tensors(preset)) == weights_of(preset_tensors(preset)))
        << preset;
  for (const char* model : {"model.", ""})
    EXPECT_TRUE(native_shapes("huggingface", text_only("tiny", model)) ==
                weights_of(text_only("tiny", model)))
        << model;
}

TEST(minimax_m3_layouts, every_hf_tensor_is_one_piece_of_one_native_tensor) {
  for (const char* preset : {"tiny", "small", "full"}) {
    for (const char* layout : {"automodel", "transformers", "huggingface"}) {
      const WeightMap map = m3(layout, preset_catalog(preset));
      const bool has_mtp = std::string_view(layout) != "transformers";
      Shapes found;
      for (const auto& [fqn, shape] : native_shapes(layout, preset_tensors(preset))) {
        std::int64_t elements = 0;
        for (const Piece& piece : pieces_of(map, fqn, shape)) {
          ASSERT_TRUE(found.emplace(piece.hf_name, piece.hf_shape).second)
              << layout << ": " << piece.hf_name << " twice";
          ASSERT_EQ(native_matches_of(map, piece.hf_name).at(0).fqn, fqn) << layout;
          elements += volume(piece.hf_shape);
        }
        ASSERT_EQ(elements, volume(shape)) << layout << ": " << fqn;
      }
      Shapes expected = weights_of(preset_tensors(preset));
      if (!has_mtp) std::erase_if(expected, [](const auto& weight) { return is_mtp(weight.first); });
      ASSERT_TRUE(found == expected) << layout << " of " << preset;
    }
  }
}

TEST(minimax_m3_layouts, each_native_element_is_in_one_piece) {
  for (const char* layout : {"transformers", "huggingface"}) {
    const WeightMap map = m3(layout);
    for (auto [fqn, shape] : native_shapes(layout, preset_tensors("small"))) {
      for (std::int64_t& size : shape) size = 2 * ((size + 1023) / 1024);
      std::vector<int> count(static_cast<std::size_t>(volume(shape)), 0);
      for (const Piece& piece : pieces_of(map, fqn, shape)) {
        for_each_index(piece.native_box.size,
                       [&](const Shape& step) { ++count[flat(plus(step, piece.native_box.offset), shape)]; });
      }
      ASSERT_EQ(count, std::vector<int>(count.size(), 1)) << layout << ": " << fqn;
    }
  }
}

TEST(minimax_m3_layouts, transformers_joins_gate_rows_and_up_rows_and_transposes_nothing) {
  const WeightMap map = m3("transformers");
  const std::string hf = "language_model.model.layers.3.block_sparse_moe.experts.";
  const std::vector<Piece> joined =
      pieces_of(map, "model.language_model.layers.3.mlp.experts.gate_up_proj", {2, 10, 6});
  ASSERT_EQ(joined.size(), 4U);
  for (std::int64_t e = 0; e < 2; ++e) {
    for (int part = 0; part < 2; ++part) {
      const Piece& piece = joined[static_cast<std::size_t>(2 * e + part)];
      EXPECT_EQ(piece.hf_name, hf + std::to_string(e) + (part == 0 ? ".w1.weight" : ".w3.weight"));
      EXPECT_EQ(piece.hf_shape, (Shape{5, 6}));
      EXPECT_EQ(piece.native_box, (Box{{e, part * 5, 0}, {1, 5, 6}}));
      EXPECT_EQ(piece.correspondence->axes, (std::vector<int>{1, 2}));
    }
  }
  for (const std::string mlp : {"layers.0.mlp.", "layers.3.mlp.shared_experts."}) {
    const std::vector<Piece> rows =
        pieces_of(map, "model.language_model." + mlp + "gate_up_proj.weight", {10, 6});
    ASSERT_EQ(rows.size(), 2U);
    EXPECT_TRUE(rows[0].hf_name.ends_with(".gate_proj.weight"));
    EXPECT_EQ(rows[0].native_box, (Box{{0, 0}, {5, 6}}));
    EXPECT_TRUE(rows[1].hf_name.ends_with(".up_proj.weight"));
    EXPECT_EQ(rows[1].native_box, (Box{{5, 0}, {5, 6}}));
  }
  expect_error(ErrorKind::mismatch, {"layers.0.mlp.gate_up_proj", "multiple of 2", "[9, 6]"}, [&] {
    pieces_of(map, "model.language_model.layers.0.mlp.gate_up_proj.weight", {9, 6});
  });
}

TEST(minimax_m3_layouts, mtp_has_no_place_in_transformers_and_is_reported_as_unused) {
  const Catalog catalog = preset_catalog("tiny");
  const WeightMap map = m3("transformers", catalog);
  std::set<std::string> expected;
  for (const auto& [name, shape] : weights_of(preset_tensors("tiny"))) {
    EXPECT_EQ(is_without_place(map, name), is_mtp(name)) << name;
    EXPECT_EQ(!native_matches_of(map, name).empty(), !is_mtp(name)) << name;
    if (is_mtp(name)) expected.insert(name);
  }
  const LoadPlan plan = plan_load(specs_on_mesh(native_tensors(catalog, map), {}, 0), catalog, map);
  EXPECT_EQ(std::set<std::string>(plan.unused.begin(), plan.unused.end()), expected);
  EXPECT_EQ(plan.unused.size(), expected.size());

  std::vector<NamedShape> tensors = preset_tensors("tiny");
  tensors.push_back({"language_model.model.mtp.layers.0.other.weight", DType::BF16, {4}});
  const Catalog with_unknown = catalog_of(tensors);
  expect_error(ErrorKind::mismatch, {"mtp.layers.0.other.weight", "no rule"}, [&] {
    plan_load(specs_on_mesh(native_tensors(catalog, map), {}, 0), with_unknown,
              m3("transformers", with_unknown));
  });
}

TEST(minimax_m3_layouts, a_text_only_checkpoint_has_the_names_of_transformers_text_model) {
  const std::string language_model = "language_model.";
  Shapes expected;
  for (const auto& [fqn, shape] : native_shapes("transformers", preset_tensors("tiny"))) {
    const std::size_t at = fqn.find(language_model);
    if (at != std::string::npos) expected[std::string(fqn).erase(at, language_model.size())] = shape;
    if (fqn == "lm_head.weight") expected[fqn] = shape;
  }
  for (const char* model : {"model.", ""})
    EXPECT_TRUE(native_shapes("transformers", text_only("tiny", model)) == expected) << model;
}

TEST(minimax_m3_layouts, a_trainer_with_huggingface_names_may_spell_them_in_any_dialect) {
  const std::string rest = "layers.1.block_sparse_moe.experts.2.w3.weight";
  const std::map<std::string, std::vector<std::string>> spellings = {
      {"language_model.model.", {"language_model.model.", "model."}},
      {"model.", {"language_model.model.", "model."}},
      {"", {"language_model.model.", "model.", ""}},
  };
  for (const auto& [in_files, in_trainer] : spellings) {
    const Catalog catalog =
        in_files.starts_with("language") ? preset_catalog("tiny") : catalog_of(text_only("tiny", in_files));
    const WeightMap map = m3("huggingface", catalog);
    for (const std::string& spelling : in_trainer) {
      const std::vector<Piece> pieces = pieces_of(map, spelling + rest, {32, 64});
      ASSERT_EQ(pieces.size(), 1U) << spelling;
      EXPECT_EQ(pieces[0].hf_name, in_files + rest) << spelling;
      EXPECT_EQ(pieces[0].hf_shape, (Shape{32, 64}));
      EXPECT_EQ(pieces[0].native_box, whole({32, 64}));
      const std::string norm = spelling + "norm.weight";
      EXPECT_EQ(pieces_of(map, norm, {64}).at(0).hf_name, in_files + "norm.weight");
    }
    EXPECT_EQ(native_matches_of(map, in_files + rest).at(0).fqn, in_files + rest);
    EXPECT_FALSE(native_matches_of(map, in_files + rest).at(0).rule->stacked());
  }
}

TEST(minimax_m3_layouts, a_layout_has_no_say_in_what_is_quantized) {
  const std::vector<NamedShape> tensors = preset_tensors("tiny");
  for (const char* layout : {"transformers", "huggingface"}) {
    const WeightMap map = m3(layout, catalog_of(tensors));
    for (const NamedShape& tensor : tensors) {
      const std::vector<NameMatch> places = native_matches_of(map, tensor.name);
      if (places.empty()) continue;
      ASSERT_EQ(places.front().rule->quantized,
                native_matches_of(m3("automodel"), tensor.name).at(0).rule->quantized)
          << tensor.name;
    }
    // What is asked for is what the checkpoint holds, MTP aside where it has no place.
    Shapes requested, expected;
    for (const Request& request :
         request_list(specs_on_mesh(native_tensors(catalog_of(tensors), map), {}, 0), map))
      requested[request.name] = request.shape;
    for (const NamedShape& tensor : tensors) {
      // The documented rule of names does not know of eh_proj's scales.
      if (tensor.name.ends_with("eh_proj.weight_scale_inv")) continue;
      if (!native_matches_of(map, tensor.name).empty()) expected[tensor.name] = tensor.shape;
    }
    EXPECT_TRUE(requested == expected) << layout;
  }
}

}  // namespace
}  // namespace shardwright
