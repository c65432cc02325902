#include "storage/files/printable.h"

#include <algorithm>
#include <cstdint>

#include "storage/files/secrets.h"

namespace shardwright {

namespace {

/// Bytes of the well-formed UTF-8 sequence that `text` begins with (Unicode 15, table 3-7); 0 if it begins
/// with none.
std::size_t sequence_length(std::string_view text) {
  const auto byte = [&](std::size_t i) {
    return i < text.size() ? static_cast<std::uint8_t>(text[i]) : std::uint8_t{0};
  };
  const auto continues = [&](std::size_t i) { return (byte(i) & 0xC0) == 0x80; };
  const std::uint8_t first = byte(0);
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return continues(1) ? 2 : 0;
  if (first >= 0xE0 && first <= 0xEF) {
    if (first == 0xE0 && byte(1) < 0xA0) return 0;  // overlong
    if (first == 0xED && byte(1) > 0x9F) return 0;  // surrogates
    return continues(1) && continues(2) ? 3 : 0;
  }
  if (first >= 0xF0 && first <= 0xF4) {
    if (first == 0xF0 && byte(1) < 0x90) return 0;  // overlong
    if (first == 0xF4 && byte(1) > 0x8F) return 0;  // above U+10FFFF
    return continues(1) && continues(2) && continues(3) ? 4 : 0;
  }
  return 0;
}

}  // namespace

std::string printable(std::string_view shown, std::size_t max_bytes) {
  const std::string without = shown.find("://") == shown.npos ? "" : without_secrets(shown);
  const std::string_view text = without.empty() ? shown : without;
  static constexpr char digits[] = "0123456789abcdef";
  std::string result;
  std::size_t at = 0;
  while (at < text.size() && result.size() < max_bytes) {
    const std::size_t length = sequence_length(text.substr(at));
    const auto byte = static_cast<std::uint8_t>(text[at]);
    if (length == 0 || byte < 0x20 || byte == 0x7F) {
      result += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
      ++at;
    } else {
      result.append(text.substr(at, length));
      at += length;
    }
  }
  if (at < text.size()) result += "... (" + std::to_string(text.size()) + " bytes)";
  return result;
}

std::string in_quotes(std::string_view text) { return '"' + printable(text) + '"'; }

std::string listed(std::span<const std::string> names) {
  constexpr std::size_t shown = 20;
  std::string result;
  for (std::size_t i = 0; i < std::min(names.size(), shown); ++i) {
    if (i > 0) result += ", ";
    result += in_quotes(names[i]);
  }
  if (names.size() > shown) result += " and " + std::to_string(names.size() - shown) + " more";
  return result;
}

}  // namespace shardwright
