#include "storage/tools/generate.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <tuple>

#include "planner/models/known_models.h"
#include "planner/models/minimax_m3_presets.h"
#include "planner/models/stored_encodings.h"
#include "planner/names/encodings.h"
#include "planner/names/quantization_config.h"
#include "storage/format/read_catalog.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

GenerateReport make(const std::filesystem::path& directory, const std::string& preset, std::uint64_t seed = 0,
                    int threads = 0, bool layout_only = false) {
  GenerateOptions options;
  options.preset = preset;
  options.seed = seed;
  options.threads = threads;
  options.layout_only = layout_only;
  return generate(directory, options);
}

std::map<std::string, std::string> contents(const std::filesystem::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    files[entry.path().filename().string()] = read_file(entry.path());
  }
  return files;
}

TEST(generate, the_catalog_made_without_writing_is_that_of_the_files) {
  const TemporaryDirectory directory;
  for (const std::string preset : {"tiny", "small"}) {
    GenerateOptions options;
    options.preset = preset;
    options.encoding = preset == "tiny" ? "" : "nvfp4_modelopt";
    options.layout_only = true;
    generate(directory / preset, options);
    const Catalog made = generated_catalog(options);
    const Catalog read = read_catalog(directory / preset);
    EXPECT_EQ(made.config, read.config);
    ASSERT_EQ(made.files.size(), read.files.size());
    for (std::size_t f = 0; f < read.files.size(); ++f) {
      EXPECT_EQ(made.files[f].name, read.files[f].name);
      EXPECT_EQ(made.files[f].size, read.files[f].size);
    }
    ASSERT_EQ(made.tensors.size(), read.tensors.size());
    const auto fields = [](const SourceTensor& t) {
      return std::tie(t.name, t.dtype, t.shape, t.offset, t.file, t.begin, t.end);
    };
    for (std::size_t t = 0; t < read.tensors.size(); ++t)
      ASSERT_TRUE(fields(made.tensors[t]) == fields(read.tensors[t])) << read.tensors[t].name;
  }
}

TEST(generate, equal_seeds_give_equal_bytes_with_any_number_of_threads) {
  const TemporaryDirectory directory;
  make(directory / "one", "tiny", 3, 1);
  make(directory / "two", "tiny", 3, 2);
  make(directory / "many", "tiny", 3, 9);
  make(directory / "other", "tiny", 4, 1);
  const auto one = contents(directory / "one");
  EXPECT_EQ(contents(directory / "two"), one);
  EXPECT_EQ(contents(directory / "many"), one);
  const auto other = contents(directory / "other");
  for (const auto& [name, bytes] : one) {
    EXPECT_EQ(other.at(name) == bytes, name.ends_with(".json")) << name;
  }
}

TEST(generate, writes_each_encoding_and_refuses_others) {
  const TemporaryDirectory directory;
  GenerateOptions options;
  options.preset = "small";  // its weights have several blocks of each kind
  options.layout_only = true;
  for (const StoredEncoding& stored : stored_encodings()) {
    options.encoding = stored.name;
    generate(directory / options.encoding, options);
    const Catalog catalog = read_catalog(directory / options.encoding);
    const auto counts = scaled_weights(catalog);
    const std::int64_t experts = 4 * 16 * 3;  // the rest is in MXFP8, where they are packed
    EXPECT_EQ(counts.size(), stored.is_of_experts() ? 2U : 1U) << stored.name;
    const std::int64_t found = counts.at(std::string(stored.encoding));
    EXPECT_TRUE(stored.is_of_experts() ? found == experts : found > experts) << stored.name << found;
    EXPECT_EQ(fault_of_quantization_config(catalog), "") << stored.name;
  }
  options.encoding = "fp3";
  expect_error(ErrorKind::argument, {"fp3", "mxfp8, block_fp8, tensor_fp8"},
               [&] { generate(directory / "other", options); });
}

TEST(generate, the_shape_beside_integers_is_that_of_the_weight) {
  const TemporaryDirectory directory;
  GenerateOptions options;
  options.family = "kimi_k2";
  options.form = "kimi_k2_int4";
  generate(directory / "new", options);
  const Catalog catalog = read_catalog(directory / "new");
  const std::string weight = "model.layers.1.mlp.experts.3.gate_proj.weight";
  const SourceTensor& shape = catalog.find(weight + "_shape").front();
  ASSERT_EQ(shape.dtype, DType::I32);
  const std::string file = read_file(directory / "new" / catalog.files[shape.file].name);
  std::int32_t numbers[2];
  std::memcpy(numbers, file.data() + shape.begin, sizeof numbers);
  EXPECT_EQ((Shape{numbers[0], numbers[1]}), (Shape{96, 64}));
  EXPECT_EQ(catalog.find(weight).front().dtype, DType::I4);
  EXPECT_EQ(catalog.find(weight).front().shape, (Shape{96, 64}));
}

TEST(generate, families_have_larger_sizes_too) {
  GenerateOptions options;
  for (const Model& family : models()) {
    for (const std::string& form : sample_forms(family.family)) {
      std::map<std::string, std::int64_t> parameters;
      for (const std::string size : {"tiny", "small", "bench"}) {
        options.family = family.family;
        options.form = form;
        options.preset = size;
        const Catalog catalog = generated_catalog(options);
        for (const SourceTensor& tensor : catalog.tensors) parameters[size] += volume(tensor.shape);
        EXPECT_EQ(scaled_weights(catalog).count("unknown"), 0U) << family.family << " " << form;
      }
      EXPECT_GT(parameters["small"], 5 * parameters["tiny"]) << family.family << " " << form;
      EXPECT_GT(parameters["bench"], 5 * parameters["small"]) << family.family << " " << form;
    }
  }
}

TEST(generate, layers_replaces_the_presets_number_of_layers) {
  const TemporaryDirectory directory;
  GenerateOptions options;
  const std::int64_t tensors = generate(directory / "usual", options).tensors;
  options.layers = 5;
  const GenerateReport report = generate(directory / "deep", options);
  // tiny: 3 layers; each further one is a sparse layer of 10 plain tensors and 4 + 3 * (4 + 1) scaled weights
  EXPECT_EQ(report.tensors - tensors, 2 * (10 + 2 * (4 + 3 * (4 + 1))));
  const auto config = nlohmann::json::parse(read_file(directory / "deep" / "config.json"));
  EXPECT_EQ(config["text_config"]["num_hidden_layers"], 5);
  options.layers = 1;
  EXPECT_THROW(generate(directory / "dense", options), Error);
}

TEST(generate, a_checkpoint_has_several_files_named_as_usual_an_index_and_a_config) {
  const TemporaryDirectory directory;
  const GenerateReport report = make(directory / "new/sub", "tiny");
  const auto files = contents(directory / "new/sub");
  ASSERT_GE(report.files, 2);
  EXPECT_EQ(files.size(), static_cast<std::size_t>(report.files) + 5);
  for (const char* name :
       {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"})
    EXPECT_TRUE(files.contains(name)) << name;
  EXPECT_TRUE(files.contains("model-00001-of-0000" + std::to_string(report.files) + ".safetensors"));
  const auto index = nlohmann::json::parse(files.at("model.safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], report.bytes);
  EXPECT_EQ(index["weight_map"].size(), static_cast<std::size_t>(report.tensors));
  const auto config = nlohmann::json::parse(files.at("config.json"));
  EXPECT_EQ(config["model_type"], "minimax_m3_vl");
  EXPECT_EQ(config["text_config"]["model_type"], "minimax_m3_vl_text");
  EXPECT_EQ(config["text_config"]["num_local_experts"], 4);
  EXPECT_EQ(config["text_config"]["num_mtp_modules"], 1);
  EXPECT_EQ(config["vision_config"]["hidden_size"], 32);
  EXPECT_EQ(config["quantization_config"]["quant_method"], "mxfp8");
  EXPECT_EQ(config["quantization_config"]["weight_block_size"], nlohmann::json({1, 32}));
}

TEST(generate, the_catalog_of_a_checkpoint_holds_the_tensors_of_its_preset) {
  const TemporaryDirectory directory;
  for (const char* preset : {"tiny", "small"}) {
    const GenerateReport report = make(directory / preset, preset);
    const Catalog catalog = read_catalog(directory / preset);
    const auto tensors = minimax_m3_checkpoint(*find_minimax_m3_preset(preset));
    EXPECT_EQ(report.tensors, static_cast<std::int64_t>(tensors.size()));
    ASSERT_EQ(catalog.tensors.size(), tensors.size());
    for (const NamedShape& tensor : tensors) {
      const auto found = catalog.find(tensor.name);
      ASSERT_EQ(found.size(), 1u) << tensor.name;
      EXPECT_EQ(found[0].dtype, tensor.dtype) << tensor.name;
      EXPECT_EQ(found[0].shape, tensor.shape) << tensor.name;
    }
  }
}

TEST(generate, a_checkpoint_holds_every_fp8_code_but_nan) {
  const TemporaryDirectory directory;
  generate(directory.path, {.any_values = true});
  const Catalog catalog = read_catalog(directory.path);
  std::map<std::uint8_t, int> counts;
  for (const SourceTensor& tensor : catalog.tensors) {
    if (tensor.dtype != DType::F8_E4M3) continue;
    const std::string bytes =
        read_file(catalog.path_of(tensor)).substr(tensor.begin, tensor.end - tensor.begin);
    for (const char byte : bytes) ++counts[static_cast<std::uint8_t>(byte)];
  }
  EXPECT_EQ(counts.size(), 254u);
  EXPECT_FALSE(counts.contains(0x7F) || counts.contains(0xFF));
}

TEST(generate, layout_only_has_the_same_headers_and_takes_no_space) {
  const TemporaryDirectory directory;
  make(directory / "true", "small");
  make(directory / "layout", "small", 0, 2, true);
  const Catalog expected = read_catalog(directory / "true");
  const Catalog found = read_catalog(directory / "layout");
  ASSERT_EQ(found.tensors.size(), expected.tensors.size());
  for (std::size_t i = 0; i < found.tensors.size(); ++i) {
    EXPECT_EQ(found.tensors[i].name, expected.tensors[i].name);
    EXPECT_EQ(found.tensors[i].begin, expected.tensors[i].begin);
    EXPECT_EQ(found.tensors[i].file, expected.tensors[i].file);
  }
  struct stat status {};
  ASSERT_EQ(stat((directory / "layout" / found.files[0].name).c_str(), &status), 0);
  EXPECT_GT(status.st_size, 10'000'000);
  EXPECT_LT(status.st_blocks * 512, 1'000'000);
}

TEST(generate, a_directory_that_holds_a_checkpoint_is_refused_and_left_as_it_is) {
  const TemporaryDirectory directory;
  make(directory.path, "tiny");
  const auto before = contents(directory.path);
  expect_error(ErrorKind::argument, {directory.path.native(), "expected a directory without a checkpoint"},
               [&] { make(directory.path, "tiny", 1); });
  EXPECT_EQ(contents(directory.path), before);
}

TEST(generate, an_unknown_preset_is_an_error_that_lists_them) {
  const TemporaryDirectory directory;
  expect_error(ErrorKind::argument, {"\"huge\"", "tiny, small, bench, full"},
               [&] { make(directory / "x", "huge"); });
  EXPECT_FALSE(std::filesystem::exists(directory / "x"));
}

TEST(generate, a_directory_that_cannot_be_made_is_an_io_error) {
  const TemporaryDirectory directory;
  write_file(directory / "file", "");
  expect_error(ErrorKind::io, {"/file: expected a directory"}, [&] { make(directory / "file/new", "tiny"); });
}

TEST(generate, a_disk_without_space_for_all_of_it_is_an_io_error_before_any_file_is_written) {
  const TemporaryDirectory directory;
  if (std::filesystem::space(directory.path).available > 451'596'846'592)
    GTEST_SKIP() << "this disk has space for it";
  expect_error(ErrorKind::io, {directory.path.native(), "451596846592 bytes of free space"},
               [&] { make(directory.path, "full"); });
  EXPECT_TRUE(std::filesystem::is_empty(directory.path));
}

TEST(generate, a_failed_run_leaves_the_directory_as_it_was) {
  const TemporaryDirectory whole;
  make(whole.path, "tiny");
  const TemporaryDirectory directory;
  const std::filesystem::path stranger = directory / "model-00002-of-00004.safetensors.partial";
  std::ofstream(stranger) << "of another program";
  // The first file grows beyond what this process may write; the others do not.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit less{std::filesystem::file_size(whole / "model-00001-of-00004.safetensors") - 1,
                    before.rlim_max};
  ASSERT_GE(less.rlim_cur, std::filesystem::file_size(whole / "model-00002-of-00004.safetensors"));
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &less), 0);
  expect_error(ErrorKind::io, {"model-00001-of-00004.safetensors", "cannot write"},
               [&] { make(directory.path, "tiny", 0, 4); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory.path), {}), 1);
  EXPECT_EQ(read_file(stranger), "of another program");
}

}  // namespace
}  // namespace shardwright
