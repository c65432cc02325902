#include "storage/format/adapter_config.h"

#include <gtest/gtest.h>

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "storage/format/adapter_file.h"
#include "storage/jobs/adapters.h"
#include "tests/storage/checkpoint_files.h"

namespace shardwright {
namespace {

/// A config of peft's with these members more.
std::string config_with(const std::string& members) {
  return R"({"peft_type": "LORA", "r": 4, "lora_alpha": 8)" + (members.empty() ? "" : ", " + members) + "}";
}

AdapterConfig parsed(const std::string& members) {
  return parse_adapter_config(config_with(members), "dir/adapter_config.json");
}

void expect_refusal(ErrorKind kind, const std::string& text, std::initializer_list<std::string_view> words) {
  SCOPED_TRACE(text.substr(0, 200));
  expect_error(kind, words, [&] { parse_adapter_config(text, "dir/adapter_config.json"); });
  expect_error(kind, {"dir/adapter_config.json: "},
               [&] { parse_adapter_config(text, "dir/adapter_config.json"); });
}

TEST(adapter_config, numbers_patterns_and_names_are_taken_in_the_files_order) {
  const AdapterConfig config = parsed(
      R"("use_rslora": true, "alpha_pattern": {"z": 1, "a\\.b": 0.5, "m": -2},
         "target_parameters": ["mlp.experts.gate_up_proj", "a"], "other": {"r": 9, "deep": [{"r": [7]}]})");
  EXPECT_EQ(config.r, 4);
  EXPECT_EQ(config.lora_alpha, 8);
  EXPECT_TRUE(config.use_rslora);
  EXPECT_EQ(config.alpha_pattern,
            (std::vector<std::pair<std::string, double>>{{"z", 1}, {"a\\.b", 0.5}, {"m", -2}}));
  EXPECT_EQ(config.target_parameters, (std::vector<std::string>{"mlp.experts.gate_up_proj", "a"}));
  EXPECT_EQ(config.written, std::nullopt);
}

TEST(adapter_config, settings_that_say_nothing_leave_an_adapter_plain) {
  const AdapterConfig config = parsed(
      R"("use_rslora": null, "alpha_pattern": {}, "target_parameters": null, "use_dora": false, "bias": null,
         "modules_to_save": [], "trainable_token_indices": {}, "layer_replication": null, "arrow_config": {},
         "init_lora_weights": "gaussian", "peft_version": null)");
  EXPECT_FALSE(config.use_rslora);
  EXPECT_TRUE(config.alpha_pattern.empty());
  EXPECT_TRUE(config.target_parameters.empty());
}

TEST(adapter_config, of_two_members_of_a_name_the_last_counts) {
  EXPECT_EQ(parsed(R"("r": 2, "target_parameters": ["a"], "target_parameters": ["b"])").target_parameters,
            std::vector<std::string>{"b"});
  EXPECT_EQ(parsed(R"("r": 2)").r, 2);
}

TEST(adapter_config, other_kinds_of_adapters_are_refused_by_the_setting_that_tells) {
  for (const auto& [name, value, expected] :
       std::vector<std::array<std::string, 3>>{{"use_dora", "true", "false"},
                                               {"bias", R"("all")", R"("none")"},
                                               {"lora_bias", "true", "false"},
                                               {"fan_in_fan_out", "true", "false"},
                                               {"use_qalora", "true", "false"},
                                               {"use_bdlora", R"({"a": 1})", "false"},
                                               {"modules_to_save", R"(["lm_head", "embed"])", "null"},
                                               {"trainable_token_indices", "[1, 2]", "null"},
                                               {"layer_replication", "3", "null"},
                                               {"megatron_config", R"({"a": 1})", "null"},
                                               {"alora_invocation_tokens", "[7]", "null"},
                                               {"velora_config", R"({"a": "b"})", "null"},
                                               {"kasa_config", R"({"a": 1})", "null"},
                                               {"monteclora_config", R"({"a": 1})", "null"},
                                               {"arrow_config", R"({"a": 1})", "null"}}) {
    expect_refusal(ErrorKind::mismatch, config_with('"' + name + "\": " + value),
                   {'"' + name + "\" is " + value.substr(0, 3), "expected " + expected, "merge it"});
  }
  expect_refusal(ErrorKind::mismatch, R"({"peft_type": "IA3"})",
                 {R"("peft_type" is "IA3"; expected "LORA")"});
  expect_refusal(ErrorKind::mismatch, R"({"peft_type": null, "r": 4, "lora_alpha": 8})",
                 {"\"peft_type\" is null"});
  for (const char* way : {"pissa_niter_16", "OLoRA", "corda", "loftq", "lora_ga"}) {
    expect_refusal(ErrorKind::mismatch, config_with(std::string(R"("init_lora_weights": ")") + way + '"'),
                   {way, "path_initial_model_for_weight_conversion"});
  }
}

TEST(adapter_config, what_is_no_config_is_malformed) {
  for (const auto& [text, fault] : std::vector<std::array<std::string, 2>>{
           {"", ", but found no text at all;"},
           {"[]", R"(, but found "[" in place of the { that an object begins with;)"},
           {"{", ", but found a parse error at line 1"},
           {R"({"r": 4, "lora_alpha": NaN})", ", but found a parse error at line 1"},
           {R"({"r": 4, "lora_alpha": 1e999})", ", but found a number overflow parsing '1e999'"},
           {"{\"r\": 4, \"lora_alpha\": 8}x", ", but found a parse error at line 1"},
           {"\xff", ", but found"}}) {
    expect_refusal(ErrorKind::malformed, text, {"expected the JSON of an adapter's configuration" + fault});
  }
}

TEST(adapter_config, a_setting_that_is_none_is_told_with_what_was_expected) {
  for (const auto& [text, fault] : std::vector<std::array<std::string, 2>>{
           {"{}", "r: expected a number, found none"},
           {R"({"lora_alpha": 8})", "r: expected a number, found none"},
           {R"({"r": 4})", "lora_alpha: expected a number, found none"},
           {R"({"r": "4", "lora_alpha": 8})", R"(r: expected a whole number above 0, found "4")"},
           {R"({"r": 0, "lora_alpha": 8})", "r: expected a whole number above 0, found 0"},
           {R"({"r": 2.5, "lora_alpha": 8})", "r: expected a whole number above 0, found 2.5"},
           {R"({"r": true, "lora_alpha": 8})", "r: expected a whole number above 0, found true"},
           {R"({"r": 1e300, "lora_alpha": 8})", "r: expected a whole number above 0, found 1e300"},
           {R"({"r": [4], "lora_alpha": 8})", "r: expected a whole number above 0, found a list"},
           {R"({"r": 4, "lora_alpha": "8"})", R"(lora_alpha: expected a finite number, found "8")"}}) {
    expect_refusal(ErrorKind::malformed, text,
                   {"dir/adapter_config.json: " + fault + "; copy the adapter again"});
  }
  for (const auto& [members, fault] : std::vector<std::array<std::string, 2>>{
           {R"("use_rslora": "no")", R"(use_rslora: expected true or false, found "no")"},
           {R"("alpha_pattern": [1])",
            "alpha_pattern: expected an object of patterns and numbers, found [1]"},
           {R"("alpha_pattern": {"a": "1"})", R"(alpha_pattern a: expected a finite number, found "1")"},
           {R"("alpha_pattern": {"a": {}})", "alpha_pattern a: expected a finite number, found an object"},
           {R"("target_parameters": "abc")", R"(target_parameters: expected a list of names, found "abc")"},
           {R"("target_parameters": [1])", "target_parameters: expected a list of names, found [1]"},
           {R"("target_parameters": {"a": "b"})",
            R"(target_parameters: expected a list of names, found {"a": "b"})"}}) {
    expect_refusal(ErrorKind::malformed, config_with(members),
                   {"dir/adapter_config.json: " + fault + "; copy the adapter again"});
  }
}

TEST(adapter_config, what_is_nested_deeply_is_neither_kept_nor_told) {
  const std::string deep(200'000, '[');
  const std::string end(200'000, ']');
  EXPECT_EQ(parsed("\"other\": " + deep + end).r, 4);
  expect_refusal(ErrorKind::mismatch, config_with("\"layer_replication\": " + deep + end), {"is [a list];"});
  expect_refusal(ErrorKind::malformed, R"({"r": 4, "lora_alpha": )" + deep + end + "}",
                 {": lora_alpha: expected a finite number, found a list;"});
}

TEST(adapter_config, a_long_list_is_told_by_its_first_entries) {
  expect_refusal(ErrorKind::mismatch,
                 config_with("\"modules_to_save\": [1, 2, 3, 4, \"a\", [7], {}, null, 9, 10]"),
                 {"\"modules_to_save\" is [1, 2, 3, 4, \"a\", a list, an object, null, ...]; expected null"});
  EXPECT_EQ(
      parsed("\"target_parameters\": [\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\", \"h\", \"i\", \"j\"]")
          .target_parameters.size(),
      10u);
}

TEST(adapter_config, every_cut_and_every_changed_byte_is_a_config_or_an_error) {
  const std::string whole = config_with(
      R"("use_rslora": true, "alpha_pattern": {"a": 1.5}, "target_parameters": ["b"], "bias": "none")");
  const auto expect_either = [](const std::string& text) {
    try {
      const AdapterConfig config = parse_adapter_config(text, "file");
      EXPECT_GE(config.r, 1) << text;
    } catch (const Error& error) {
      EXPECT_TRUE(error.kind == ErrorKind::malformed || error.kind == ErrorKind::mismatch) << text;
    }
  };
  for (std::size_t at = 0; at < whole.size(); ++at) {
    expect_either(whole.substr(0, at));
    for (int byte = 0; byte < 256; ++byte) {
      std::string text = whole;
      text[at] = static_cast<char>(byte);
      expect_either(text);
    }
  }
}

TEST(adapter_config, the_sense_of_wrappers_is_that_of_the_version) {
  using enum WrapperSense;
  const std::vector<std::pair<std::string, std::optional<WrapperSense>>> versions{
      {"0.19.1", modern},     {"0.19.2.dev0", modern}, {"0.20", modern},   {"1.0.0", modern},
      {"0.19.0", legacy},     {"0.19", legacy},        {"0.18.1", legacy}, {"0.19.0.dev3", legacy},
      {"0.19rc1", legacy},    {"19", std::nullopt},    {"", std::nullopt}, {"new", std::nullopt},
      {".19.1", std::nullopt}};
  for (const auto& [version, sense] : versions)
    EXPECT_EQ(parsed(R"("peft_version": ")" + version + '"').written, sense) << version;
}

TEST(adapter_config, a_note_of_nemo_automodel_comes_before_the_version) {
  const TemporaryDirectory directory;
  write_file(directory / adapter_config_name, config_with(R"("peft_version": "0.18.0")"));
  const auto note = [&](const std::string& text) {
    write_file(directory / "automodel_peft_config.json", text);
    return read_adapter_config(directory.path).written;
  };
  EXPECT_EQ(read_adapter_config(directory.path).written, WrapperSense::legacy);
  EXPECT_EQ(note(R"({"paramwrapper_layout": "peft-0.19.1"})"), WrapperSense::modern);
  EXPECT_EQ(note(R"({"paramwrapper_layout": "another"})"), WrapperSense::legacy);
  EXPECT_EQ(note("no JSON"), WrapperSense::legacy);
}

TEST(adapter_config, an_adapter_of_another_kind_is_not_loaded) {
  const TemporaryDirectory directory;
  write_file(directory / adapter_config_name, config_with("\"use_dora\": true"));
  write_file(directory / adapter_weights_name, safetensors_bytes(one_tensor("a", 3), 6));
  expect_error(ErrorKind::mismatch, {"\"use_dora\" is true"}, [&] { load_adapter(directory.path, {}); });
}

TEST(adapter_config, files_that_are_not_there_are_named) {
  const TemporaryDirectory directory;
  expect_error(ErrorKind::not_found, {"absent", "no such directory"},
               [&] { read_adapter(directory / "absent"); });
  expect_error(ErrorKind::not_found, {"adapter_config.json: no such file", "peft"},
               [&] { read_adapter(directory.path); });
  write_file(directory / adapter_config_name, config_with(""));
  expect_error(ErrorKind::not_found, {"adapter_model.safetensors: no such file"},
               [&] { read_adapter(directory.path); });
  write_file(directory / "adapter_model.bin", "");
  expect_error(ErrorKind::not_found, {"adapter_model.safetensors", "is a pickle", "safe_serialization"},
               [&] { read_adapter(directory.path); });
  write_file(directory / adapter_weights_name, safetensors_bytes(one_tensor("a", 3), 6));
  const StoredAdapter adapter = read_adapter(directory.path);
  EXPECT_EQ(adapter.config.r, 4);
  ASSERT_EQ(adapter.catalog.tensors.size(), 1u);
  EXPECT_EQ(adapter.catalog.tensors[0].name, "a");
}

}  // namespace
}  // namespace shardwright
