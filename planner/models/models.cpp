#include "planner/models/models.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "planner/error.h"

namespace shardwright {
namespace {

std::string joined(const std::vector<std::string_view>& words) {
  std::string text;
  for (std::string_view word : words) text += (text.empty() ? "" : ", ") + std::string(word);
  return text;
}

std::string known_families() {
  std::string text;
  for (const Model& model : models()) {
    text += (text.empty() ? "" : "; ") + std::string(model.family) + " (model_type " +
            joined(model.model_types) + ")";
  }
  return text;
}

bool contains(const std::vector<std::string_view>& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

/// config.json's "model_type"; empty if there is none.
std::string model_type_of(const Catalog& catalog) {
  if (catalog.config.empty()) return "";
  const nlohmann::json config = nlohmann::json::parse(catalog.config, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || !config.contains("model_type") || !config["model_type"].is_string()) return "";
  return config["model_type"].get<std::string>();
}

const Model& recognise(const Catalog& catalog) {
  const std::string model_type = model_type_of(catalog);
  for (const Model& model : models()) {
    if (model_type.empty() ? model.has_names_of(catalog) : contains(model.model_types, model_type))
      return model;
  }
  throw Error(
      ErrorKind::mismatch,
      catalog.directory.string() + ": cannot tell which model this is: " +
          (model_type.empty() ? "config.json names no model_type and the tensor names fit no known model"
                              : "config.json says model_type " + model_type + ", which is not known") +
          ". Known: " + known_families() + ". Name the family with model=...");
}

const Model& named(std::string_view family) {
  for (const Model& model : models()) {
    if (model.family == family || contains(model.model_types, family)) return model;
  }
  throw Error(ErrorKind::argument,
              "model '" + std::string(family) + "' is not known. Known: auto; " + known_families());
}

}  // namespace

const std::vector<Model>& models() {
  static const std::vector<Model> all{minimax_m3()};
  return all;
}

WeightMap weight_map_for(const Catalog& catalog, std::string_view family, std::string_view layout) {
  const Model& model = family == "auto" ? recognise(catalog) : named(family);
  if (!contains(model.layouts, layout)) {
    throw Error(ErrorKind::argument, "layout '" + std::string(layout) + "' is not known for " +
                                         std::string(model.family) + ". Known: " + joined(model.layouts));
  }
  return model.weight_map(layout, catalog);
}

}  // namespace shardwright
