#pragma once

#include <string>

namespace shardwright {

/// The text as a JSON string, quotes included. Throws Error (argument) if it is not UTF-8.
std::string json_text(const std::string& text);

}  // namespace shardwright
