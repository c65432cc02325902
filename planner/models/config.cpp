#include "planner/models/config.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace shardwright {
namespace {

using Json = nlohmann::json;

Json config_of(const Catalog& catalog) {
  if (catalog.config.empty()) return Json::object();
  Json config = Json::parse(catalog.config, nullptr, /*allow_exceptions=*/false);
  return config.is_object() ? config : Json::object();
}

std::optional<std::int64_t> number_in(const Json& config, std::string_view name) {
  constexpr std::uint64_t most = std::numeric_limits<std::int32_t>::max();
  const auto found = config.find(name);
  if (found == config.end() || !found->is_number_unsigned() || found->get<std::uint64_t>() > most)
    return std::nullopt;
  return found->get<std::int64_t>();
}

std::optional<bool> flag_in(const Json& config, std::string_view name) {
  const auto found = config.find(name);
  return found != config.end() && found->is_boolean() ? std::optional(found->get<bool>()) : std::nullopt;
}

std::string model_type_in(const Json& config) {
  const auto found = config.find("model_type");
  return found != config.end() && found->is_string() ? found->get<std::string>() : "";
}

Json part_of(const Json& config, std::string_view part) {
  const auto found = config.find(part);
  return found != config.end() && found->is_object() ? *found : Json::object();
}

}  // namespace

std::string model_type_of(const Catalog& catalog) { return model_type_in(config_of(catalog)); }

std::string model_type_of(const Catalog& catalog, std::string_view part) {
  return model_type_in(part_of(config_of(catalog), part));
}

std::optional<std::int64_t> number_in_config(const Catalog& catalog, std::string_view name) {
  const Json config = config_of(catalog);
  const auto of_text = number_in(part_of(config, "text_config"), name);
  return of_text ? of_text : number_in(config, name);
}

std::optional<std::int64_t> number_in_config(const Catalog& catalog, std::string_view part,
                                             std::string_view name) {
  return number_in(part_of(config_of(catalog), part), name);
}

bool may_be_tied(const Catalog& catalog) {
  const Json config = config_of(catalog);
  const std::optional<bool> own = flag_in(config, "tie_word_embeddings");
  const std::optional<bool> of_text = flag_in(part_of(config, "text_config"), "tie_word_embeddings");
  if (!own && !of_text) return true;
  return own.value_or(false) || of_text.value_or(false);
}

}  // namespace shardwright
