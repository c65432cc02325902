#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace shardwright {

/// Receives JSON piece by piece. Files are parsed this way, not into a json object, for two reasons: a json
/// object keeps the last of two members of one name without a word, and building one for 46,521 tensors takes
/// ten times as long. Here every event is accepted and ignored; a reader overrides the ones it has a use for,
/// or throws.
struct JsonEvents {
  using Json = nlohmann::json;

  virtual ~JsonEvents() = default;
  virtual bool null() { return true; }
  virtual bool boolean(bool) { return true; }
  virtual bool number_integer(Json::number_integer_t) { return true; }    ///< only numbers with a minus sign
  virtual bool number_unsigned(Json::number_unsigned_t) { return true; }  ///< whole numbers that fit 64 bits
  virtual bool number_float(Json::number_float_t, const std::string&) { return true; }  ///< all others
  virtual bool string(std::string&) { return true; }
  virtual bool binary(Json::binary_t&) { return true; }
  virtual bool start_object(std::size_t) { return true; }
  virtual bool key(std::string&) { return true; }
  virtual bool end_object() { return true; }
  virtual bool start_array(std::size_t) { return true; }
  virtual bool end_array() { return true; }
  bool parse_error(std::size_t position, const std::string& last_token, const Json::exception& error);

  std::string fault;  ///< "found a parse error at line 1, ..."
};

/// Sends `text`, which must be one JSON object and nothing after it but white space, to `events`. Returns
/// what is wrong with the text, if anything is: "found ...", which follows what was expected.
std::optional<std::string> parse_json_object(std::string_view text, JsonEvents& events);

}  // namespace shardwright
