#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace shardwright {

/// What the variables of a pattern stood for in a name.
struct Captures {
  std::int64_t layer = -1;   ///< {layer}
  std::int64_t expert = -1;  ///< {expert}
  std::string rest;          ///< {*}
};

/// A tensor name with variables: {layer} and {expert} stand for a decimal number without leading zeros, {*}
/// for one or more characters of any kind and is allowed at the end only. Each may occur once. Example:
/// "model.layers.{layer}.self_attn.index_{*}" matches "model.layers.7.self_attn.index_q_proj.weight".
class NamePattern {
 public:
  /// Throws std::invalid_argument for an unknown variable or for {*} before the end.
  explicit NamePattern(std::string_view text);

  std::optional<Captures> match(std::string_view name) const;

  /// The inverse of match. The captures must have a value for each variable of the pattern.
  std::string fill(const Captures& captures) const;

  bool has_expert() const;
  const std::string& text() const { return text_; }

 private:
  enum class Kind : std::uint8_t { literal, layer, expert, rest };
  struct Part {
    Kind kind;
    std::string literal;
  };

  std::string text_;
  std::vector<Part> parts_;
};

}  // namespace shardwright
