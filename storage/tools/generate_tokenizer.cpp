#include "storage/tools/generate_tokenizer.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>
#include <vector>

namespace shardwright {

namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view tokenizer_name = "tokenizer.json";
constexpr std::string_view tokenizer_config_name = "tokenizer_config.json";
constexpr std::string_view generation_name = "generation_config.json";

struct Mark {
  std::string_view role;  ///< as config.json spells it, before "_token_id"
  std::string_view token;
};
constexpr Mark marks[] = {{"pad", "<pad>"}, {"bos", "<s>"}, {"eos", "</s>"}};
constexpr std::string_view unknown = "<unk>";

/// A value of the text model's part of config.json, or of the whole.
const Json* find(const Json& config, const std::string& name) {
  for (const Json* part : {config.contains("text_config") ? &config["text_config"] : &config, &config}) {
    const auto found = part->find(name);
    if (found != part->end() && !found->is_null()) return &*found;
  }
  return nullptr;
}

std::optional<std::int64_t> number(const Json& config, const std::string& name) {
  const Json* value = find(config, name);
  if (value != nullptr && value->is_array() && !value->empty()) value = &(*value)[0];
  if (value == nullptr || !value->is_number_integer()) return std::nullopt;
  return value->get<std::int64_t>();
}

/// The characters by which tokenizers of bytes write them (GPT-2's alphabet): those that can be printed stand
/// for themselves, the others are moved up behind Latin-1. Of ASCII first.
std::vector<std::string> byte_tokens() {
  std::vector<std::string> printable;
  std::vector<std::string> moved;
  std::vector<std::string> latin;
  const auto utf8 = [](unsigned code) {
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    return std::string{static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
  };
  unsigned next = 256;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool is_printable = byte > ' ' && byte <= '~';
    const bool is_latin = byte > 0xA0 && byte != 0xAD;
    (is_printable ? printable
     : is_latin   ? latin
                  : moved)
        .push_back(utf8(is_printable || is_latin ? byte : next++));
  }
  const std::string space = moved[' '];
  printable.insert(printable.begin(), space);
  moved.erase(moved.begin() + ' ');
  for (const std::vector<std::string>* more : {&moved, &latin})
    printable.insert(printable.end(), more->begin(), more->end());
  return printable;
}

}  // namespace

std::map<std::string, std::string> beside_generated(const std::string& config_text) {
  const Json config = Json::parse(config_text);
  const std::int64_t vocabulary = number(config, "vocab_size").value_or(0);

  Json marks_of_tokenizer = Json::array();
  Json vocab = Json::object();
  Json names = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  Json generation = {{"_from_model_config", true}};
  std::set<std::int64_t> taken;
  const auto add_mark = [&](std::string_view token, std::int64_t id) {
    vocab[token] = id;
    taken.insert(id);
    marks_of_tokenizer.push_back({{"id", id},
                                  {"content", token},
                                  {"single_word", false},
                                  {"lstrip", false},
                                  {"rstrip", false},
                                  {"normalized", false},
                                  {"special", true}});
  };
  for (const Mark& mark : marks) {
    const std::string role(mark.role);
    const std::optional<std::int64_t> id = number(config, role + "_token_id");
    if (!id || *id < 0 || *id >= vocabulary) continue;
    generation[role + "_token_id"] = *id;
    if (taken.contains(*id)) continue;
    add_mark(mark.token, *id);
    names[role + "_token"] = mark.token;
  }
  std::int64_t next = 0;
  const auto next_id = [&] {
    while (taken.contains(next)) ++next;
    return next < vocabulary ? std::optional(next) : std::nullopt;
  };
  if (const auto id = next_id()) {
    add_mark(unknown, *id);
    names["unk_token"] = unknown;
  }
  for (const std::string& token : byte_tokens()) {
    const auto id = next_id();
    if (!id) break;
    vocab[token] = *id;
    taken.insert(*id);
  }
  if (const auto longest = number(config, "max_position_embeddings")) names["model_max_length"] = *longest;

  const Json bytes = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
  const Json tokenizer = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", marks_of_tokenizer},
                          {"normalizer", nullptr},
                          {"pre_tokenizer", bytes},
                          {"post_processor", nullptr},
                          {"decoder", bytes},
                          {"model",
                           {{"type", "BPE"},
                            {"dropout", nullptr},
                            {"unk_token", unknown},
                            {"continuing_subword_prefix", nullptr},
                            {"end_of_word_suffix", nullptr},
                            {"fuse_unk", false},
                            {"byte_fallback", false},
                            {"ignore_merges", false},
                            {"vocab", vocab},
                            {"merges", Json::array()}}}};
  return {{std::string(tokenizer_name), tokenizer.dump(1) + "\n"},
          {std::string(tokenizer_config_name), names.dump(2) + "\n"},
          {std::string(generation_name), generation.dump(2) + "\n"}};
}

bool is_beside_generated(std::string_view name) {
  return name == tokenizer_name || name == tokenizer_config_name || name == generation_name;
}

}  // namespace shardwright
