#include "planner/names/name_pattern.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <stdexcept>
#include <utility>

namespace shardwright {
namespace {

/// Takes a decimal number without leading zeros from the front of `name`.
std::optional<std::int64_t> take_number(std::string_view& name) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
  const auto length = static_cast<std::size_t>(end - name.data());
  if (error != std::errc{} || name.front() == '-' || (name.front() == '0' && length > 1)) return std::nullopt;
  name.remove_prefix(length);
  return number;
}

}  // namespace

NamePattern::NamePattern(std::string_view text) : text_(text) {
  while (!text.empty()) {
    const std::size_t brace = std::min(text.find('{'), text.size());
    if (brace > 0) parts_.push_back({Kind::literal, std::string(text.substr(0, brace))});
    text.remove_prefix(brace);
    if (text.empty()) break;
    const std::size_t close = std::min(text.find('}'), text.size() - 1);
    const std::string_view variable = text.substr(0, close + 1);
    text.remove_prefix(close + 1);
    if (const std::optional<Part> number = number_of(variable)) {
      parts_.push_back(*number);
      parts_.back().literal = variable;
    } else if (variable == "{*}" && text.empty()) {
      parts_.push_back({Kind::rest});
    } else {
      throw std::invalid_argument("name pattern " + text_ + ": " + std::string(variable) +
                                  " is not allowed here");
    }
  }
}

std::optional<Captures> NamePattern::match(std::string_view name) const {
  Captures captures;
  for (const Part& part : parts_) {
    if (part.kind == Kind::literal) {
      if (!name.starts_with(part.literal)) return std::nullopt;
      name.remove_prefix(part.literal.size());
    } else if (part.kind == Kind::rest) {
      if (name.empty()) return std::nullopt;
      captures.rest = name;
      name = {};
    } else {
      const std::optional<std::int64_t> number = take_number(name);
      if (!number || (part.more > 0 && *number < part.more)) return std::nullopt;
      if (part.more < 0 && *number > std::numeric_limits<std::int64_t>::max() + part.more)
        return std::nullopt;
      if (part.kind == Kind::layer) captures.layer = *number - part.more;
      if (part.kind == Kind::expert) captures.expert = *number - part.more;
      if (part.kind == Kind::shard) captures.shard = *number - part.more;
    }
  }
  if (!name.empty()) return std::nullopt;
  return captures;
}

std::string NamePattern::fill(const Captures& captures) const {
  std::string name;
  for (const Part& part : parts_) {
    switch (part.kind) {
      case Kind::literal:
        name += part.literal;
        break;
      case Kind::layer:
        name += std::to_string(captures.layer + part.more);
        break;
      case Kind::expert:
        name += captures.expert < 0 ? part.literal : std::to_string(captures.expert + part.more);
        break;
      case Kind::shard:
        name += captures.shard < 0 ? part.literal : std::to_string(captures.shard + part.more);
        break;
      case Kind::rest:
        name += captures.rest;
        break;
    }
  }
  return name;
}

bool NamePattern::has_expert() const { return has(Kind::expert); }
bool NamePattern::has_shard() const { return has(Kind::shard); }

bool NamePattern::has(Kind kind) const {
  return std::any_of(parts_.begin(), parts_.end(), [&](const Part& part) { return part.kind == kind; });
}

std::optional<NamePattern::Part> NamePattern::number_of(std::string_view variable) {
  constexpr std::pair<std::string_view, Kind> kinds[] = {
      {"{layer", Kind::layer}, {"{expert", Kind::expert}, {"{shard", Kind::shard}};
  for (const auto& [begin, kind] : kinds) {
    if (!variable.starts_with(begin) || !variable.ends_with('}')) continue;
    std::string_view more = variable.substr(begin.size(), variable.size() - begin.size() - 1);
    if (more.empty()) return Part{kind};
    const char sign = more.front();
    more.remove_prefix(1);
    const std::optional<std::int64_t> number = more.empty() ? std::nullopt : take_number(more);
    if ((sign != '+' && sign != '-') || !number || !more.empty()) return std::nullopt;
    return Part{kind, "", sign == '+' ? *number : -*number};
  }
  return std::nullopt;
}

}  // namespace shardwright
