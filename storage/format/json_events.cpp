#include "storage/format/json_events.h"

#include "storage/files/printable.h"

namespace shardwright {

bool JsonEvents::parse_error(std::size_t, const std::string&, const Json::exception& error) {
  const std::string_view text = error.what();
  const std::size_t bracket = text.find("] ");  // the parser's own error number, which helps nobody
  fault = "found a " + printable(bracket == std::string_view::npos ? text : text.substr(bracket + 2));
  return false;
}

std::optional<std::string> parse_json_object(std::string_view text, JsonEvents& events) {
  // The parser would take a NUL for the end of the text, and never look at what follows it.
  if (const std::size_t at = text.find('\0'); at != std::string_view::npos) {
    return "found a NUL byte at offset " + std::to_string(at);
  }
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return "found no text at all";
  if (text[first] != '{')
    return "found " + in_quotes(text.substr(first, 1)) + " in place of the { that an object begins with";
  if (!nlohmann::json::sax_parse(text.data(), text.data() + text.size(), &events)) return events.fault;
  return std::nullopt;
}

}  // namespace shardwright
