#include "storage/write/export_words.h"

#include <cstddef>
#include <string_view>

#include "planner/error.h"
#include "planner/problems.h"
#include "planner/save/rank_states.h"
#include "storage/format/content_words.h"

namespace shardwright {
namespace {

std::string digest_of(std::string_view text) {
  std::string digits;
  for (const char byte : hash_of(text)) {
    constexpr std::string_view hex = "0123456789abcdef";
    digits += {hex[static_cast<unsigned char>(byte) >> 4], hex[static_cast<unsigned char>(byte) & 15]};
  }
  return digits;
}

std::string digest_of(const WeightMap* map) {
  if (map == nullptr) return "none";
  std::string text;
  for (const Rule& rule : map->rules) {
    text += rule.hf.text() + " " + rule.native.text() + " " + rule.axes.text() + " " +
            std::to_string(rule.alternative) + (rule.only_read ? " only read" : "") +
            (rule.repeats ? " repeats" : "") + (rule.rest_is_zero ? " zero" : "") +
            (rule.multiplier ? " " + rule.multiplier->text() : "") + "\n";
  }
  for (const auto& [name, size] : map->sizes) text += name + " " + std::to_string(size) + "\n";
  return digest_of(text);
}

}  // namespace

std::vector<std::string> words_of(const ExportRequest& request) {
  std::string files;
  for (const auto& [name, number] : request.file_numbers) files += name + " " + std::to_string(number) + "\n";
  std::string patterns;
  for (const std::string& pattern : request.quantized_weights)
    patterns += (patterns.empty() ? "" : " ") + pattern;
  std::vector<std::string> words{
      "model " + request.model,
      "layout " + request.layout,
      std::string("quantization ") + (request.as_template           ? "template"
                                      : request.quantize != nullptr ? std::string(request.quantize->name)
                                                                    : "none"),
      "quantized_weights " + (patterns.empty() ? "none" : patterns),
      std::string("strict ") + (request.strict ? "true" : "false"),
      std::string("strict_dtypes ") + (request.strict_dtypes ? "true" : "false"),
      "max_shard_size " + std::to_string(request.max_file_bytes),
      "file numbers " + (files.empty() ? "none" : digest_of(files)),
      "rules " + digest_of(request.map),
  };
  if (request.template_catalog != nullptr) {
    for (const std::string& word : content_words(*request.template_catalog, 0))
      words.push_back("template's " + word);
  }
  if (!request.adapter) return words;
  const AdapterAsked& adapter = *request.adapter;
  words.push_back("adapter's model " + adapter.model);
  words.push_back("adapter's layout " + adapter.layout);
  words.push_back(std::string("text_only ") + (adapter.text_only ? "true" : "false"));
  words.push_back("param_wrapper " + std::string(name_of(adapter.sense)));
  words.push_back("alpha " + std::to_string(adapter.alpha));
  words.push_back(std::string("use_rslora ") + (adapter.use_rslora ? "true" : "false"));
  words.push_back("base_model " + adapter.base_model);
  words.push_back("task_type " + adapter.task_type.value_or("none"));
  return words;
}

void expect_asked_alike(const std::vector<std::vector<std::string>>& ranks) {
  Problems problems{differences_of_ranks(ranks)};
  problems.throw_if_any(ErrorKind::mismatch,
                        "the ranks have been given different arguments; nothing has been written:");
}

}  // namespace shardwright
