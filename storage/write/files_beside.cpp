#include "storage/write/files_beside.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <string_view>

#include "planner/error.h"
#include "planner/names/quantization_config.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"
#include "storage/format/checkpoint_in_place.h"

namespace shardwright {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

/// Whether a file of this name holds weights or a trainer's state, in whatever format, or says where they
/// are.
bool is_of_weights(const std::string& name) {
  static const std::regex pattern(
      R"(\.(bin|pt|pth|pkl|pickle|h5|hdf5|msgpack|ot|tflite|mlmodel|pdparams|nemo|npz|npy|distcp))"
      R"((\.index\.json)?([.~](bak|old|orig|tmp|[0-9]+))*~?$)"
      R"(|\.(safetensors|onnx|gguf|ckpt))",
      std::regex::icase);
  return std::regex_search(name, pattern);
}

/// What tells of an adapter, a training or a checkpoint of one that is in the same folder; alone it would
/// mislead.
bool is_of_others(const std::string& name) {
  static const std::regex pattern(
      R"(shardwright\..*|adapter_config\.json|automodel_peft_config\.json|trainer_state\.json|latest)"
      R"(|zero_to_fp32\.py|events\.out\.tfevents\..*)");
  return std::regex_match(name, pattern);
}

/// A folder that holds no weights: what transformers puts beside a tokenizer with several chat templates.
constexpr std::string_view templates_of_chats = "additional_chat_templates";

constexpr std::string_view config_name = "config.json";

std::string read_all(const fs::path& path) {
  const InputFile file(path);
  std::string bytes(file.size(), '\0');
  file.read(0, bytes.data(), bytes.size());
  return bytes;
}

std::string content_of(const fs::path& directory, const std::string& name, const ToldQuantization& told) {
  std::string bytes = read_all(directory / name);
  return name == config_name ? config_of(bytes, told, printable((directory / name).native())) : bytes;
}

/// The words that Python writes and JSON lacks, each as the JSON text that stands for it meanwhile.
constexpr std::string_view words[]{"-Infinity", "Infinity", "NaN"};

std::string stand_in_for(std::string_view word) {
  return "\"\\u0001" + std::string(word) + "\\u0001\"";  // as the library writes it, too
}

std::string without_words(std::string_view text) {
  std::string strict;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (in_string) {
      strict += text[i];
      if (text[i] == '\\' && i + 1 < text.size()) {
        strict += text[++i];
      } else {
        in_string = text[i] != '"';
      }
      continue;
    }
    in_string = text[i] == '"';
    std::string_view found;
    for (const std::string_view word : words) {
      if (found.empty() && text.substr(i, word.size()) == word) found = word;
    }
    if (found.empty()) {
      strict += text[i];
    } else {
      strict += stand_in_for(found);
      i += found.size() - 1;
    }
  }
  return strict;
}

std::string with_words(std::string text) {
  for (const std::string_view word : words) {
    const std::string stand_in = stand_in_for(word);
    for (std::size_t at = text.find(stand_in); at != std::string::npos; at = text.find(stand_in, at))
      text.replace(at, stand_in.size(), word);
  }
  return text;
}

/// One group of weights, as compressed-tensors and ModelOpt write it.
Json weights_of_group(const Quantization& how, std::int64_t group) {
  Json weights{{"num_bits", 4}, {"type", how.stored == DType::I32 ? "int" : "float"}};
  if (group > 0) weights["group_size"] = group;
  weights["dynamic"] = false;
  return weights;
}

Json modelopt_config(const Quantization& how, const ToldQuantization& told) {
  const std::int64_t group = format_of(how.rule).block_columns;
  return {{"quant_method", "modelopt"},
          {"quant_algo", how.has_global() ? "W4A16_NVFP4" : "MXFP4"},  // of weights alone
          {"config_groups",
           {{"group_0", {{"weights", weights_of_group(how, group)}, {"targets", Json::array({"Linear"})}}}}},
          {"ignore", told.plain_modules}};
}

Json compressed_tensors_config(const Quantization& how, const ToldQuantization& told) {
  const bool is_channel = how.encoding == "int4_channel";
  const std::int64_t group = how.encoding == "int4_group128" ? 128 : format_of(how.rule).block_columns;
  Json weights = weights_of_group(how, is_channel ? 0 : group);
  weights["symmetric"] = true;
  weights["strategy"] = is_channel ? "channel" : how.has_global() ? "tensor_group" : "group";
  if (how.rule == EncodingRule::mxfp4_ocp) weights["scale_dtype"] = "torch.uint8";
  if (how.has_global()) weights["scale_dtype"] = "torch.float8_e4m3fn";
  const char* const format = how.stored == DType::I32 ? "pack-quantized"
                             : how.has_global()       ? "nvfp4-pack-quantized"
                                                      : "mxfp4-pack-quantized";
  return {{"quant_method", "compressed-tensors"},
          {"format", format},
          {"quantization_status", "compressed"},
          {"config_groups",
           {{"group_0",
             {{"targets", Json::array({"Linear"})},
              {"weights", weights},
              {"input_activations", nullptr},
              {"output_activations", nullptr},
              {"format", format}}}}},
          {"ignore", told.plain_modules}};
}

/// What the tool that has the rule writes of it.
Json config_of_quantization(const ToldQuantization& told) {
  const Quantization& how = *told.how;
  switch (how.rule) {
    case EncodingRule::mxfp8:
      return {{"quant_method", "mxfp8"},
              {"fmt", "e4m3"},
              {"scale_fmt", "ue8m0"},
              {"weight_block_size", Json::array({1, 32})},
              {"activation_scheme", "dynamic"}};
    case EncodingRule::block_fp8:
      return {{"quant_method", "fp8"},
              {"fmt", "e4m3"},
              {"weight_block_size", Json::array({128, 128})},
              {"activation_scheme", "dynamic"},
              {"modules_to_not_convert", told.plain_modules}};
    case EncodingRule::mxfp4_gpt_oss:
      return {{"quant_method", "mxfp4"}, {"modules_to_not_convert", told.plain_modules}};
    case EncodingRule::mxfp4_modelopt:
    case EncodingRule::nvfp4_modelopt:
      return modelopt_config(how, told);
    case EncodingRule::mxfp4_ocp:
    case EncodingRule::nvfp4_compressed_tensors:
    case EncodingRule::int4_compressed_tensors:
      return compressed_tensors_config(how, told);
  }
  return {};
}

/// Under which names tools list the modules that are not encoded.
constexpr const char* lists_of_plain_modules[]{"modules_to_not_convert", "ignored_layers", "ignore"};

/// Whether such a list means the module: by its name, or by that of a module that it is in.
bool lists(const Json& names, const std::string& module) {
  return names.is_array() && std::any_of(names.begin(), names.end(), [&](const Json& name) {
           if (!name.is_string()) return false;
           const std::string text = name.get<std::string>();
           return module == text || module.starts_with(text + ".");
         });
}

/// A template's quantization_config of the same rule with the list of those modules that it now is of, if
/// what it lists is of other weights; else as it is.
Json with_plain_modules(Json config, const ToldQuantization& told) {
  const char* list = nullptr;
  for (const char* const name : lists_of_plain_modules) {
    if (list == nullptr && config.contains(name)) list = name;
  }
  const Json listed = list == nullptr ? Json::array() : config.at(list);
  const auto is_listed = [&](const std::string& module) { return lists(listed, module); };
  const bool is_true = std::none_of(told.encoded_modules.begin(), told.encoded_modules.end(), is_listed) &&
                       std::all_of(told.newly_plain.begin(), told.newly_plain.end(), is_listed);
  if (!is_true) config[list == nullptr ? lists_of_plain_modules[0] : list] = told.plain_modules;
  return config;
}

}  // namespace

std::string config_of(const std::string& text, const ToldQuantization& told, const std::string& file) {
  const Json parsed = Json::parse(without_words(text), nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object())
    throw Error(ErrorKind::malformed, file + ": expected a JSON object, found text that is none");
  Json config = parsed;
  std::vector<Json*> having;
  const auto look_at = [&](Json& holder) {
    if (holder.is_object() && holder.contains("quantization_config")) having.push_back(&holder);
  };
  look_at(config);
  if (config.contains("text_config")) look_at(config["text_config"]);
  if (told.how == nullptr && having.empty()) return text;
  if (told.how != nullptr && !having.empty()) {
    const Json& first = having.front()->at("quantization_config");
    const bool tells_mxfp8 =
        first.is_object() && first.value("weight_block_size", Json()) == Json::array({1, 32});
    if (told.how->rule != EncodingRule::mxfp8) {
      if (first == config_of_quantization(told)) return text;
    } else if (tells_mxfp8) {
      const Json kept = with_plain_modules(first, told);
      if (kept == first) return text;
      having.front()->at("quantization_config") = kept;
      return with_words(config.dump(2)) + "\n";
    }
  }
  for (const Json* holder : having) {
    const Json& old = holder->at("quantization_config");
    const Json told_method = old.is_object() ? old.value("quant_method", Json()) : Json();
    const std::string method = told_method.is_string() ? told_method.get<std::string>() : "";
    if (!method.empty() && !is_known_method(method))
      throw Error(
          ErrorKind::mismatch,
          file + ": its quantization_config has the quant_method '" + method +
              "', which is known by name only: its weights would go on as they are and nothing would say "
              "what they are; expected one of fp8, mxfp8, mxfp4, modelopt, compressed-tensors. Convert it "
              "with the tool that made it first");
  }
  for (Json* holder : having) holder->erase("quantization_config");
  if (told.how != nullptr) config["quantization_config"] = config_of_quantization(told);
  return with_words(config.dump(2)) + "\n";
}

FileContents template_files(const fs::path& directory, const ToldQuantization& told, bool as_template) {
  FileContents files;
  for (const std::string& name : names_in(directory)) {
    if (name.starts_with(".") || is_of_weights(name) || is_of_others(name)) continue;
    if (name == modelopt_config_name && !as_template) continue;
    const fs::path path = directory / name;
    const std::optional<struct stat> target = target_at(path);
    if (!target) continue;
    if (name == templates_of_chats && S_ISDIR(target->st_mode)) {
      for (auto& [inside, content] : template_files(path, told, as_template))
        files.emplace(name + "/" + inside, std::move(content));
    } else if (S_ISREG(target->st_mode)) {
      files.emplace(name, as_template ? read_all(directory / name) : content_of(directory, name, told));
    }
  }
  return files;
}

FileContents kept_files(const fs::path& directory, const std::vector<std::string>& names,
                        const ToldQuantization& told) {
  FileContents files;
  for (const std::string& name : names) {
    if (name != modelopt_config_name) files.emplace(name, content_of(directory, name, told));
  }
  return files;
}

}  // namespace shardwright
