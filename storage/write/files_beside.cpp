#include "storage/write/files_beside.h"

#include <cctype>
#include <nlohmann/json.hpp>
#include <optional>
#include <regex>
#include <string_view>

#include "planner/error.h"
#include "storage/files/entries.h"
#include "storage/files/input_file.h"
#include "storage/files/printable.h"

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

std::string content_of(const fs::path& directory, const std::string& name, bool quantised) {
  std::string bytes = read_all(directory / name);
  return name == config_name ? config_of(bytes, quantised, printable((directory / name).native())) : bytes;
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

}  // namespace

std::string config_of(const std::string& text, bool quantised, const std::string& file) {
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
  bool tells_mxfp8 = false;
  if (!having.empty()) {
    const Json& first = having.front()->at("quantization_config");
    tells_mxfp8 = first.is_object() && first.value("weight_block_size", Json()) == Json::array({1, 32});
  }
  if (quantised == tells_mxfp8 && quantised == !having.empty()) return text;
  for (Json* holder : having) holder->erase("quantization_config");
  if (quantised) {
    config["quantization_config"] = Json{{"quant_method", "mxfp8"},
                                         {"fmt", "e4m3"},
                                         {"scale_fmt", "ue8m0"},
                                         {"weight_block_size", Json::array({1, 32})},
                                         {"activation_scheme", "dynamic"}};
  }
  return with_words(config.dump(2)) + "\n";
}

FileContents template_files(const fs::path& directory, bool quantised, bool as_template) {
  FileContents files;
  for (const std::string& name : names_in(directory)) {
    if (name.starts_with(".") || is_of_weights(name) || is_of_others(name)) continue;
    const fs::path path = directory / name;
    const std::optional<struct stat> target = target_at(path);
    if (!target) continue;
    if (name == templates_of_chats && S_ISDIR(target->st_mode)) {
      for (auto& [inside, content] : template_files(path, quantised, as_template))
        files.emplace(name + "/" + inside, std::move(content));
    } else if (S_ISREG(target->st_mode)) {
      files.emplace(name, as_template ? read_all(directory / name) : content_of(directory, name, quantised));
    }
  }
  return files;
}

FileContents kept_files(const fs::path& directory, const std::vector<std::string>& names, bool quantised) {
  FileContents files;
  for (const std::string& name : names) files.emplace(name, content_of(directory, name, quantised));
  return files;
}

}  // namespace shardwright
