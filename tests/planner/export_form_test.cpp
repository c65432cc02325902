#include "planner/save/export_form.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "planner/error.h"
#include "planner/models/models.h"
#include "planner/names/companions.h"
#include "planner/names/held_tensors.h"
#include "tests/planner/random_checkpoint.h"
#include "tests/planner/released_model.h"
#include "tests/planner/rounds.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

std::vector<SavedTensor> saved(const RandomModel& model) {
  std::vector<SavedTensor> tensors;
  for (const Native& native : model.natives) tensors.push_back({native.fqn, native.dtype, native.shape});
  return tensors;
}

ExportForm form_of(const Catalog& template_catalog, bool quantize) {
  ExportForm form;
  form.map = weight_map_for(template_catalog);
  form.template_catalog = &template_catalog;
  if (quantize) form.quantize = quantization_named("mxfp8");
  form.by_rule_of_names = !has_scales(template_catalog);
  return form;
}

struct Expected {
  DType dtype;
  Shape shape;

  bool operator==(const Expected&) const = default;
};

TEST(export_form, names_dtypes_and_scales_are_those_of_the_template) {
  Random random(1);
  for (int round = 0; round < rounds(200); ++round) {
    const RandomModel model = random_model(random);
    const Catalog template_catalog = catalog_of(random, model.stored);
    const bool quantize = has_scales(template_catalog) && random.once_in(2);
    // The slow definition: what is stored is stored again; scales decide what is MXFP8.
    std::map<std::string, Expected> expected;
    for (const Stored& stored : model.stored) {
      if (is_scale_name(stored.name)) continue;
      const auto scales = std::find_if(model.stored.begin(), model.stored.end(), [&](const Stored& other) {
        return other.name != stored.name && is_scale_name(other.name) &&
               weight_name_of(other.name) == stored.name;
      });
      if (scales == model.stored.end()) {
        expected[stored.name] = {stored.dtype, stored.shape};
      } else if (!quantize) {
        expected[stored.name] = {DType::BF16, stored.shape};
      } else {
        const DType scale = scales->dtype == DType::F8_E8M0 ? DType::F8_E8M0 : DType::U8;
        expected[stored.name] = {DType::F8_E4M3, stored.shape};
        expected[stored.name + "_scale_inv"] = {scale, {stored.shape[0], (stored.shape[1] + 31) / 32}};
      }
    }

    const ExportedTensors exported = exported_tensors(saved(model), form_of(template_catalog, quantize));
    EXPECT_TRUE(exported.left_out.empty());
    std::map<std::string, Expected> found;
    std::pair<std::uint32_t, std::uint64_t> place;
    std::string previous;
    for (const SourceTensor& tensor : exported.tensors) {
      ASSERT_TRUE(found.emplace(tensor.name, Expected{tensor.dtype, tensor.shape}).second) << tensor.name;
      if (tensor.name.ends_with("_scale_inv")) {
        ASSERT_EQ(previous + "_scale_inv", tensor.name) << "scales follow their weights";
      } else {
        const SourceTensor& first = template_catalog.find(tensor.name).front();
        ASSERT_LE(place, std::pair(first.file, first.begin)) << "the template's order";
        place = {first.file, first.begin};
      }
      previous = tensor.name;
    }
    ASSERT_EQ(found, expected);
  }
}

TEST(export_form, what_the_template_has_in_narrower_dtypes_is_rounded_and_refused_if_strict) {
  const std::set<std::pair<DType, DType>> narrowing = {{DType::F32, DType::BF16},
                                                       {DType::F32, DType::F16},
                                                       {DType::BF16, DType::F16},
                                                       {DType::F16, DType::BF16}};
  Random random(6);
  int rounded = 0;
  for (int round = 0; round < rounds(100); ++round) {
    const RandomModel model = random_model(random);
    const Catalog template_catalog = catalog_of(random, model.stored);
    ExportForm form = form_of(template_catalog, has_scales(template_catalog) && random.once_in(2));
    std::set<std::string> expected;
    for (const Native& native : model.natives) {
      for_each_index(native.shape, [&](const Shape& at) {
        const std::string name = hf_element(native, at).name;
        const bool scaled = !scales_of(template_catalog, name).empty();
        const DType stored = scaled ? DType::BF16 : template_catalog.find(name).front().dtype;
        if (!(scaled && form.quantize != nullptr) && narrowing.contains({native.dtype, stored}))
          expected.insert(native.fqn);
      });
    }
    std::set<std::string> found;
    for (const auto& [name, cast] : exported_tensors(saved(model), form).rounded) found.insert(name);
    ASSERT_EQ(found, expected) << "round " << round;
    rounded += static_cast<int>(found.size());
    form.strict_dtypes = true;
    try {
      exported_tensors(saved(model), form);
      ASSERT_TRUE(expected.empty());
    } catch (const Error& error) {
      const std::string message = error.what();
      for (const std::string& name : expected) ASSERT_NE(message.find(name + ": "), std::string::npos);
      ASSERT_FALSE(expected.empty()) << message;
    }
  }
  EXPECT_GT(rounded, rounds(50));
}

/// What a weight by another rule, or in BF16, has no place for.
TEST(export_form, scales_of_activations_that_are_not_taken_over_are_left_out_by_name) {
  Catalog catalog;
  catalog.files = {{"model.safetensors", 0}};
  const auto add = [&](const std::string& name, DType dtype, Shape shape) {
    const Shape offset(shape.size(), 0);
    catalog.tensors.push_back({name, dtype, std::move(shape), offset});
  };
  add("k_proj.k_scale", DType::F32, {});
  add("k_proj.weight", DType::F8_E4M3, {4, 64});
  add("k_proj.weight_scale", DType::F32, {});
  add("q_proj.input_scale", DType::F32, {});
  add("q_proj.weight", DType::F4, {4, 64});
  add("q_proj.weight_scale", DType::F8_E4M3, {4, 4});
  add("q_proj.weight_scale_2", DType::F32, {});
  ExportForm form;
  form.map = unchanged_names();
  form.template_catalog = &catalog;
  form.by_rule_of_names = false;
  const std::vector<SavedTensor> tensors{{"k_proj.weight", DType::BF16, {4, 64}},
                                         {"q_proj.weight", DType::BF16, {4, 64}}};
  const std::vector<std::string> expected{"k_proj.k_scale", "q_proj.input_scale"};
  EXPECT_EQ(exported_tensors(tensors, form).left_out, expected);  // in BF16
  form.quantize = quantization_named("nvfp4-modelopt");
  EXPECT_EQ(exported_tensors(tensors, form).left_out, expected);
  form.quantize = nullptr;
  form.as_template = true;
  EXPECT_EQ(exported_tensors(tensors, form).left_out, std::vector<std::string>());
}

TEST(export_form, what_the_template_has_and_the_state_dict_lacks_is_an_error_or_left_out) {
  Random random(2);
  for (int round = 0; round < 50; ++round) {
    const RandomModel model = random_model(random);
    const Catalog template_catalog = catalog_of(random, model.stored);
    std::vector<SavedTensor> tensors = saved(model);
    const auto missing = tensors.begin() + random.between(0, std::ssize(tensors) - 1);
    const Native gone{missing->fqn, missing->dtype, missing->shape};
    std::set<std::string> names;
    for_each_index(gone.shape, [&](const Shape& at) { names.insert(hf_element(gone, at).name); });
    tensors.erase(missing);
    ExportForm form = form_of(template_catalog, false);
    expect_error(ErrorKind::mismatch, {"no tensor of the state dict", "strict=False", "/checkpoint"},
                 [&] { exported_tensors(tensors, form); });
    form.strict = false;
    const ExportedTensors exported = exported_tensors(tensors, form);
    EXPECT_EQ(std::set<std::string>(exported.left_out.begin(), exported.left_out.end()), names);
    for (const SourceTensor& tensor : exported.tensors) EXPECT_FALSE(names.contains(tensor.name));
  }
}

TEST(export_form, a_tensor_or_shape_that_the_template_lacks_is_an_error_that_names_it) {
  Random random(3);
  const RandomModel model = random_model(random);
  const Catalog template_catalog = catalog_of(random, model.stored);
  std::vector<SavedTensor> tensors = saved(model);
  tensors.push_back({"model.layers.9.self_attn.q_proj.weight", DType::BF16, {3, 3}});
  for (SavedTensor& tensor : tensors) {
    if (tensor.fqn == "lm_head.weight") ++tensor.shape[0];
  }
  expect_error(ErrorKind::mismatch, {"model.layers.9.self_attn.q_proj.weight", "lm_head.weight"},
               [&] { exported_tensors(tensors, form_of(template_catalog, false)); });
}

TEST(export_form, a_dtype_that_cannot_be_stored_so_is_an_error_that_names_the_tensor) {
  Random random(4);
  RandomModel model = random_model(random);
  while (!has_scales(catalog_of(random, model.stored))) model = random_model(random);
  const Catalog template_catalog = catalog_of(random, model.stored);
  std::vector<SavedTensor> tensors = saved(model);
  for (SavedTensor& tensor : tensors) tensor.dtype = DType::I32;
  expect_error(ErrorKind::mismatch, {"cannot", "I32"},
               [&] { exported_tensors(tensors, form_of(template_catalog, true)); });
}

TEST(export_form, without_a_template_the_names_tell_the_family_and_its_rule_what_to_quantize) {
  std::vector<SavedTensor> tensors;
  for (const auto& [name, shape] : released_shapes("minimax_m3_vl.native.txt"))
    tensors.push_back({name, DType::F32, shape});
  ExportForm form;
  form.quantize = quantization_named("mxfp8");
  form.map = weight_map_without_template(tensors, "auto", "automodel", true);
  EXPECT_EQ(form.map.family, "minimax_m3");
  const std::map<std::string, Shape> released = released_shapes("minimax_m3_vl.hf.txt");
  std::set<std::string> names;
  for (const SourceTensor& tensor : exported_tensors(tensors, form).tensors) {
    names.insert(tensor.name);
    const bool scaled = released.contains(tensor.name + "_scale_inv");
    if (tensor.name.ends_with("eh_proj.weight")) continue;  // has scales, but is not in the rule
    if (tensor.name.ends_with("_scale_inv")) {
      EXPECT_EQ(tensor.dtype, DType::U8);
      EXPECT_EQ(tensor.shape, released.at(tensor.name));
    } else {
      EXPECT_EQ(tensor.dtype, scaled ? DType::F8_E4M3 : DType::BF16) << tensor.name;
    }
  }
  for (const auto& [name, shape] : released) {
    EXPECT_TRUE(names.contains(name) || name.ends_with("eh_proj.weight_scale_inv")) << name;
  }
}

TEST(export_form, names_of_no_family_stay_as_they_are_and_cannot_be_quantized) {
  const std::vector<SavedTensor> tensors{{"a.weight", DType::F32, {3, 4}}, {"b", DType::I64, {}}};
  ExportForm form;
  form.map = weight_map_without_template(tensors, "auto", "automodel", false);
  const std::vector<SourceTensor> exported = exported_tensors(tensors, form).tensors;
  ASSERT_EQ(exported.size(), 2u);
  EXPECT_EQ(exported[0].name, "a.weight");
  EXPECT_EQ(exported[0].dtype, DType::F32);
  EXPECT_EQ(exported[1].dtype, DType::I64);
  expect_error(ErrorKind::mismatch, {"which weights MXFP8 is for", "template"},
               [&] { weight_map_without_template(tensors, "auto", "automodel", true); });
}

}  // namespace
}  // namespace shardwright
