#include "planner/names/quantization_config.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <set>
#include <string_view>

#include "planner/names/companions.h"

namespace shardwright {
namespace {

using Json = nlohmann::json;

/// Kinds of weights, as messages call them.
constexpr std::string_view fp8 = "FP8";
constexpr std::string_view fp4 = "FP4, two in a byte";
constexpr std::string_view int4 = "4-bit integers";
constexpr std::string_view qweight = "AWQ's or GPTQ's .qweight";

using Kinds = std::set<std::string_view>;

std::string text_in(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// Parts of a config are looked at in place. A copy that memory does not suffice for ends the process:
// nlohmann's destructor takes memory.
const Json& object_in(const Json& object, const char* name) {
  static const Json none = Json::object();
  const auto found = object.find(name);
  return found != object.end() && found->is_object() ? *found : none;
}

/// The config.json of a checkpoint; an empty object if it has none.
Json config_of(const Catalog& catalog) {
  if (catalog.config.empty()) return Json::object();
  Json config = Json::parse(catalog.config, nullptr, /*allow_exceptions=*/false);
  return config.is_object() ? config : Json::object();
}

/// The quantization_config, which models with vision may have in a part.
const Json& quantization_of(const Json& config) {
  const Json& own = object_in(config, "quantization_config");
  return own.empty() ? object_in(object_in(config, "text_config"), "quantization_config") : own;
}

/// What a method, an algorithm or a format speaks of, by its name.
void add_kinds(const std::string& name, Kinds& kinds) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string::npos; };
  if (has("fp4") || has("FP4")) kinds.insert(fp4);
  if (has("fp8") || has("FP8") || name == "float-quantized") kinds.insert(fp8);
  if (name == "pack-quantized") kinds.insert(int4);
  if (name == "awq" || name == "gptq") kinds.insert(qweight);
}

Kinds declared(const Json& config) {
  Kinds kinds;
  for (const char* name : {"quant_method", "quant_algo", "format"}) add_kinds(text_in(config, name), kinds);
  if (text_in(config, "quant_method") == "fp8" && text_in(config, "expert_dtype") == "fp4") kinds.insert(fp4);
  for (const auto& group : object_in(config, "config_groups")) {
    if (group.is_object()) add_kinds(text_in(group, "format"), kinds);
  }
  for (const auto& layer : object_in(config, "quantized_layers")) {
    if (layer.is_object()) add_kinds(text_in(layer, "quant_algo"), kinds);
  }
  return kinds;
}

Kinds present(const Catalog& catalog) {
  Kinds kinds;
  for (const SourceTensor& tensor : catalog.tensors) {
    if (tensor.dtype == DType::F4) kinds.insert(fp4);
    if (tensor.dtype == DType::I4) kinds.insert(int4);
    if (tensor.name.ends_with(".qweight")) kinds.insert(qweight);
    if (is_float8(tensor.dtype) && !is_scale_name(tensor.name)) kinds.insert(fp8);
  }
  return kinds;
}

std::string joined(const Kinds& kinds) {
  std::string text;
  for (const std::string_view kind : kinds) text += (text.empty() ? "" : " and ") + std::string(kind);
  return text.empty() ? "none" : text;
}

}  // namespace

std::string fault_of_quantization_config(const Catalog& catalog) {
  const Json config = config_of(catalog);
  const Kinds told = declared(quantization_of(config));
  if (told.empty()) return "";
  const Kinds found = present(catalog);
  for (const std::string_view kind : found) {
    if (told.contains(kind)) return "";
  }
  return "config.json: expected weights of " + joined(told) + ", as its quantization_config says, found " +
         joined(found) + " among the tensors; give the config.json that belongs to these files, or take " +
         "quantization_config out of it";
}

bool is_known_method(std::string_view method) {
  constexpr std::array<std::string_view, 7> known{
      "fp8", "mxfp8", "mxfp4", "fbgemm_fp8", "nvfp4", "modelopt", "compressed-tensors"};
  return std::find(known.begin(), known.end(), method) != known.end();
}

std::string unknown_encoding_of(const Catalog& catalog, const std::string& weight_name) {
  constexpr std::string_view ending = ".weight";
  if (!weight_name.ends_with(ending)) return "";
  const std::string module = weight_name.substr(0, weight_name.size() - ending.size());
  if (catalog.find(module + ".qweight").empty()) return "";
  return "it is stored as " + module +
         ".qweight, by AWQ or GPTQ, which are known by name only: decoding them needs zero points, groups "
         "along "
         "the rows and their own order of the elements in a word; convert the checkpoint to BF16 or to "
         "compressed-tensors' pack-quantized first";
}

}  // namespace shardwright
