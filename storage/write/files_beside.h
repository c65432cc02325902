#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "planner/save/quantization.h"

namespace shardwright {

/// Contents of files, by their names relative to a directory.
using FileContents = std::map<std::string, std::string>;

/// What a quantization_config tells of the weights.
struct ToldQuantization {
  const Quantization* how = nullptr;              ///< null: none is quantized
  std::vector<std::string> plain_modules;         ///< HF names of modules whose matrices are not
  std::vector<std::string> encoded_modules = {};  ///< the same of those whose matrices are
  std::vector<std::string> newly_plain = {};      ///< of plain_modules, those that the template has encoded
};

/// What an export takes over from its template beside the tensors: every file that is of the model but its
/// weights, such as config.json, tokenizer and processor files, and additional_chat_templates/. Weights in
/// whatever format, hidden files, and what tells of an adapter or a training in the same folder are left out.
/// config.json is as config_of() has it, or, with `as_template`, as it is. Throws Error as InputFile,
/// malformed as config_of().
FileContents template_files(const std::filesystem::path& directory, const ToldQuantization& told,
                            bool as_template = false);

/// These files of an export that another one replaces without a template, as that writes them; but
/// hf_quant_config.json, which tells of the replaced weights alone. Throws as template_files().
FileContents kept_files(const std::filesystem::path& directory, const std::vector<std::string>& names,
                        const ToldQuantization& told);

/// The text of a template's config.json with the quantization_config of the weights: unchanged where it says
/// the truth about them, else as text of two blanks' indent. Takes NaN and Infinity, as Python does. Throws
/// Error(malformed) for text that is no JSON object; `file` is what the message calls it.
std::string config_of(const std::string& text, const ToldQuantization& told, const std::string& file);

}  // namespace shardwright
