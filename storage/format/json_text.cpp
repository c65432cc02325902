#include "storage/format/json_text.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "planner/error.h"
#include "storage/files/printable.h"

namespace shardwright {

std::string json_text(const std::string& text) {
  const bool plain = std::all_of(text.begin(), text.end(), [](char character) {
    return character >= 0x20 && character < 0x7F && character != '"' && character != '\\';
  });
  if (plain) return '"' + text + '"';
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorKind::argument, "expected UTF-8, as safetensors needs, found " + in_quotes(text));
  }
}

}  // namespace shardwright
