#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "planner/names/catalog.h"

namespace shardwright {

/// What a checkpoint's config.json says under a name. Empty where there is no such file, no such name or
/// another kind of value. Numbers of its "text_config" come before its own.
std::string model_type_of(const Catalog& catalog);
std::string model_type_of(const Catalog& catalog, std::string_view part);  ///< such as "text_config"
std::optional<std::int64_t> number_in_config(const Catalog& catalog, std::string_view name);
std::optional<std::int64_t> number_in_config(const Catalog& catalog, std::string_view part,
                                             std::string_view name);  ///< of a part, such as "vision_config"

/// Whether a head that the files lack may be the embedding: config.json's "tie_word_embeddings", or that of a
/// part of it, says so, or none says that it is not.
bool may_be_tied(const Catalog& catalog);

}  // namespace shardwright
