#include "planner/models/minimax_m3_presets.h"

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "storage/format/read_catalog.h"
#include "storage/format/safetensors.h"
#include "storage/tools/generate.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

using Tensors = std::map<std::string, std::string>;  // name -> dtype and shape, as "BF16 3,5"

/// "layers.{3-5}.w" as layers.3.w, layers.4.w, layers.5.w.
void unfold(const std::string& name, const std::string& form, Tensors& tensors) {
  const std::size_t open = name.find('{');
  if (open == std::string::npos) {
    EXPECT_TRUE(tensors.emplace(name, form).second) << name;
    return;
  }
  const std::size_t dash = name.find('-', open);
  const std::size_t close = name.find('}', open);
  const int last = std::stoi(name.substr(dash + 1));
  for (int i = std::stoi(name.substr(open + 1)); i <= last; ++i) {
    unfold(name.substr(0, open) + std::to_string(i) + name.substr(close + 1), form, tensors);
  }
}

/// The released model's tensors, as tests/data/fold_manifest.py has folded them.
Tensors released_model() {
  std::ifstream file(std::filesystem::path(__FILE__).parent_path() / "../data/minimax_m3_vl.hf.txt");
  Tensors tensors;
  std::string name;
  std::string dtype;
  std::string shape;
  while (file >> name >> dtype >> shape) unfold(name, dtype + " " + shape, tensors);
  return tensors;
}

template <typename Tensor>
std::string form_of(const Tensor& tensor) {
  std::ostringstream form;
  form << name_of(tensor.dtype);
  char separator = ' ';
  for (const std::int64_t size : tensor.shape) {
    form << separator << size;
    separator = ',';
  }
  return form.str();
}

std::uint64_t total_bytes(const std::vector<NamedShape>& tensors) {
  std::uint64_t bytes = 0;
  for (const NamedShape& tensor : tensors) bytes += stored_bytes(tensor.dtype, tensor.shape);
  return bytes;
}

TEST(minimax_m3_presets, full_is_the_released_model_tensor_by_tensor) {
  const Tensors expected = released_model();
  EXPECT_EQ(expected.size(), 46521u);
  Tensors found;
  for (const NamedShape& tensor : minimax_m3_checkpoint(*find_minimax_m3_preset("full"))) {
    EXPECT_TRUE(found.emplace(tensor.name, form_of(tensor)).second) << tensor.name;
  }
  EXPECT_TRUE(found == expected);
  EXPECT_EQ(total_bytes(minimax_m3_checkpoint(*find_minimax_m3_preset("full"))), 451'596'846'592u);
}

TEST(minimax_m3_presets, the_layout_of_full_on_disk_is_the_released_model_too) {
  const TemporaryDirectory directory;
  GenerateOptions options;
  options.preset = "full";
  options.layout_only = true;
  EXPECT_EQ(generate(directory.path, options).tensors, 46521);
  const Catalog catalog = read_catalog(directory.path);
  EXPECT_GT(catalog.files.size(), 80u);
  Tensors found;
  for (const SourceTensor& tensor : catalog.tensors) found.emplace(tensor.name, form_of(tensor));
  EXPECT_TRUE(found == released_model());
}

TEST(minimax_m3_presets, each_preset_has_the_size_that_its_name_promises) {
  const std::map<std::string_view, std::pair<std::size_t, std::uint64_t>> expected = {
      {"tiny", {213, 407'920}},
      {"small", {567, 49'601'536}},
      {"bench", {1833, 2'276'756'992}},
      {"full", {46521, 451'596'846'592}},
  };
  for (const MiniMaxM3Preset& preset : minimax_m3_presets()) {
    const auto tensors = minimax_m3_checkpoint(preset);
    EXPECT_EQ(tensors.size(), expected.at(preset.name).first) << preset.name;
    EXPECT_EQ(total_bytes(tensors), expected.at(preset.name).second) << preset.name;
  }
}

TEST(minimax_m3_presets, every_scaled_weight_is_followed_by_its_scales) {
  for (const MiniMaxM3Preset& preset : minimax_m3_presets()) {
    const auto tensors = minimax_m3_checkpoint(preset);
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      if (tensors[i].dtype != DType::F8_E4M3) continue;
      EXPECT_EQ(tensors[i + 1].name, tensors[i].name + "_scale_inv");
      EXPECT_EQ(tensors[i + 1].shape, (Shape{tensors[i].shape[0], (tensors[i].shape[1] + 31) / 32}));
    }
  }
}

TEST(minimax_m3_presets, scales_and_config_are_of_the_encoding_asked_for) {
  const auto form_in = [](const MiniMaxM3Encodings& encodings, const std::string& name) {
    for (const NamedShape& tensor : minimax_m3_checkpoint(*find_minimax_m3_preset("small"), encodings)) {
      if (tensor.name == name) return form_of(tensor);
    }
    return std::string("no such tensor");
  };
  const std::string scales =
      "language_model.model.layers.2.block_sparse_moe.experts.15.w1.weight_scale_inv";  // of [256, 512]
  const std::map<std::string_view, std::pair<std::string, std::string>> expected = {
      {"mxfp8", {"U8 256,16", R"(["mxfp8",[1,32]])"}},
      {"block_fp8", {"F32 2,4", R"(["fp8",[128,128]])"}},
      {"tensor_fp8", {"F32", R"(["fp8",null])"}},
  };
  for (const auto& [name, forms] : expected) {
    const MiniMaxM3Encodings encodings = minimax_m3_encodings(name);
    const auto& [form, quantization] = forms;
    EXPECT_EQ(form_in(encodings, scales), form);
    auto config = nlohmann::json::parse(minimax_m3_config(*find_minimax_m3_preset("small"), encodings));
    auto& found = config["quantization_config"];
    EXPECT_EQ(nlohmann::json({found["quant_method"], found["weight_block_size"]}).dump(), quantization);
  }
}

TEST(minimax_m3_presets, an_unknown_name_is_no_preset) { EXPECT_EQ(find_minimax_m3_preset("huge"), nullptr); }

}  // namespace
}  // namespace shardwright
