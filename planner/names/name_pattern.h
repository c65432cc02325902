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
  std::int64_t shard = -1;   ///< {shard}
  std::string rest;          ///< {*}
};

/// A tensor name with variables: {layer}, {expert} and {shard} stand for a decimal number without leading
/// zeros, {*} for one or more characters of any kind and is allowed at the end only. Each may occur once.
/// {layer+4} and {layer-4} stand for a number that is 4 more, or less, than the layer; what would make a
/// layer less than 0 does not match. Likewise {expert+4} and {shard+4}.
///
/// "model.layers.{layer}.self_attn.index_{*}" matches "model.layers.7.self_attn.index_q_proj.weight";
/// "model.layers.{layer+61}.eh_proj.weight" matches that of layer 61, and its layer is 0.
class NamePattern {
 public:
  /// Throws std::invalid_argument for an unknown variable or for {*} before the end.
  explicit NamePattern(std::string_view text);

  /// What the variables stand for in the name; nothing if it does not fit the pattern.
  std::optional<Captures> match(std::string_view name) const;

  /// The inverse of match. An expert or shard without a number (-1) stays a variable; all others must have a
  /// value.
  std::string fill(const Captures& captures) const;

  /// Whether the pattern has {expert}.
  bool has_expert() const;

  /// Whether the pattern has {shard}.
  bool has_shard() const;

  /// The pattern as it was given.
  const std::string& text() const { return text_; }

 private:
  enum class Kind : std::uint8_t { literal, layer, expert, shard, rest };
  struct Part {
    Kind kind;
    std::string literal = {};  ///< the text itself, or the variable
    std::int64_t more = 0;     ///< than what is captured
  };
  static std::optional<Part> number_of(std::string_view variable);
  bool has(Kind kind) const;

  std::string text_;
  std::vector<Part> parts_;
};

}  // namespace shardwright
