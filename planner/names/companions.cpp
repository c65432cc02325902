#include "planner/names/companions.h"

#include <algorithm>
#include <iterator>

namespace shardwright {
namespace {

/// A weight whose name ends so may have scales named as the weight, and then the suffix.
struct ScaleName {
  std::string_view weight_ending;
  std::string_view suffix;
};
constexpr ScaleName scale_names[] = {{"", "_scale_inv"}, {".weight", "_scale"}};

/// Endings of what else may belong to an encoded weight: behind its name, or in place of its ".weight".
constexpr std::string_view companion_suffixes[] = {"_scale_2", "_global_scale", "_shape", "_activation_scale",
                                                   "_input_scale"};
constexpr std::string_view companions_of_module[] = {
    "input_scale", "input_global_scale", "activation_scale", "output_scale", "k_scale", "v_scale"};

std::string name_with(std::string_view weight_name, const ScaleName& scale_name) {
  return std::string(weight_name) + std::string(scale_name.suffix);
}

}  // namespace

std::string_view scale_suffix_of(std::string_view name) {
  for (const auto& [weight_ending, suffix] : scale_names) {
    if (name.ends_with(suffix) && name.substr(0, name.size() - suffix.size()).ends_with(weight_ending))
      return suffix;
  }
  return "";
}

std::vector<std::string> scale_names_of(std::string_view weight_name) {
  std::vector<std::string> names;
  for (const ScaleName& scale_name : scale_names) {
    if (weight_name.ends_with(scale_name.weight_ending)) names.push_back(name_with(weight_name, scale_name));
  }
  return names;
}

bool is_scale_name(std::string_view name) { return !scale_suffix_of(name).empty(); }

std::string_view weight_name_of(std::string_view name) {
  name.remove_suffix(scale_suffix_of(name).size());
  return name;
}

std::string_view weight_name_of_companion(std::string_view name) {
  for (const std::string_view suffix : companion_suffixes) {
    if (!name.ends_with(suffix)) continue;
    const std::string_view weight = name.substr(0, name.size() - suffix.size());
    if (weight.ends_with(".weight")) return weight;
  }
  return name;
}

std::span<const SourceTensor> scales_of(const Catalog& catalog, std::string_view weight_name) {
  for (const std::string& name : scale_names_of(weight_name)) {
    if (const std::span<const SourceTensor> scales = catalog.find(name); !scales.empty()) return scales;
  }
  return {};
}

std::span<const SourceTensor> global_scale_of(const Catalog& catalog, const Encoding& encoding,
                                              std::string_view weight_name) {
  if (encoding.global_suffix.empty()) return {};
  return catalog.find(std::string(weight_name) + std::string(encoding.global_suffix));
}

std::string weight_of_companion(const Catalog& catalog, std::string_view name) {
  const auto is_weight = [&](std::string_view weight_name) {
    const std::span<const SourceTensor> weight = catalog.find(weight_name);
    return !weight.empty() && (is_float8(weight.front().dtype) || is_packed(weight.front().dtype) ||
                               !scales_of(catalog, weight_name).empty());  // codes seen in bytes or words
  };
  for (const std::string_view suffix : companion_suffixes) {
    if (!name.ends_with(suffix)) continue;
    const std::string_view weight = name.substr(0, name.size() - suffix.size());
    if (is_weight(weight)) return std::string(weight);
  }
  for (const std::string_view ending : companions_of_module) {
    if (!name.ends_with(ending)) continue;
    std::string weight = std::string(name.substr(0, name.size() - ending.size())) + "weight";
    if (is_weight(weight)) return weight;
  }
  return "";
}

std::vector<std::string> companions_of(const Catalog& catalog, std::string_view weight_name) {
  std::vector<std::string> names;
  const auto add = [&](std::string name) {
    if (!catalog.find(name).empty()) names.push_back(std::move(name));
  };
  for (std::string& name : scale_names_of(weight_name)) add(std::move(name));
  for (const std::string_view suffix : companion_suffixes)
    add(std::string(weight_name) + std::string(suffix));
  constexpr std::string_view weight = "weight";
  if (!weight_name.ends_with(weight)) return names;
  const std::string module(weight_name.substr(0, weight_name.size() - weight.size()));
  for (const std::string_view ending : companions_of_module) add(module + std::string(ending));
  return names;
}

std::string what_decodes(const Catalog& catalog, const SourceTensor& tensor) {
  const bool may_be_codes =
      tensor.dtype == DType::U8 || tensor.dtype == DType::I8 || tensor.dtype == DType::I32;
  if (!may_be_codes) return "";
  for (const std::string_view suffix : {"_scale", "_scale_inv"}) {
    std::string name = tensor.name + std::string(suffix);
    if (!catalog.find(name).empty()) return name;
  }
  return "";
}

bool is_companion(const Catalog& catalog, std::string_view name) {
  return !weight_of_companion(catalog, name).empty();
}

bool is_of_activations(const Catalog& catalog, std::string_view name) {
  constexpr std::string_view of_weights[] = {".weight_scale_2", ".weight_global_scale", ".weight_shape"};
  return is_companion(catalog, name) &&
         std::none_of(std::begin(of_weights), std::end(of_weights),
                      [&](std::string_view ending) { return name.ends_with(ending); });
}

}  // namespace shardwright
