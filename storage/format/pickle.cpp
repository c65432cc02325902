#include "storage/format/pickle.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "planner/error.h"
#include "storage/files/printable.h"

namespace shardwright {
namespace {

/// The lowest bytes of a number, little endian.
void add_number(std::string& to, std::uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) to += static_cast<char>(value >> (8 * i) & 0xff);
}

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

bool is_identifier(std::string_view name) {
  const auto fits = [](char c) { return is_letter(c) || (c >= '0' && c <= '9') || c == '.'; };
  return !name.empty() && is_letter(name.front()) && std::all_of(name.begin(), name.end(), fits);
}

}  // namespace

void Pickle::integer(std::int64_t value) {
  if (value >= 0 && value <= std::numeric_limits<std::uint8_t>::max()) {
    bytes_ += 'K';
    add_number(bytes_, static_cast<std::uint64_t>(value), 1);
  } else if (value >= std::numeric_limits<std::int32_t>::min() &&
             value <= std::numeric_limits<std::int32_t>::max()) {
    bytes_ += 'J';
    add_number(bytes_, static_cast<std::uint64_t>(value), 4);
  } else {
    bytes_ += "\x8a\x08";  // with its count of bytes
    add_number(bytes_, static_cast<std::uint64_t>(value), 8);
  }
}

void Pickle::text(std::string_view value) {
  bytes_ += 'X';
  add_number(bytes_, value.size(), 4);
  bytes_ += value;
}

void Pickle::shared_text(const std::string& value) {
  from_memo('X' + value, [&] { text(value); });
}

void Pickle::global(std::string_view module, std::string_view name) {
  for (const std::string_view part : {module, name}) {
    if (!is_identifier(part))
      throw Error(ErrorKind::argument,
                  "expected a name that Python can have, found " + in_quotes(std::string(part)));
  }
  bytes_ += 'c';
  bytes_ += module;
  bytes_ += '\n';
  bytes_ += name;
  bytes_ += '\n';
}

void Pickle::shared_global(std::string_view module, std::string_view name) {
  std::string key = "c" + std::string(module) + '\n';
  from_memo(key += name, [&] { global(module, name); });
}

template <typename Write>
void Pickle::from_memo(std::string key, const Write& write) {
  const auto [entry, is_new] = memo_.try_emplace(std::move(key), static_cast<std::uint32_t>(memo_.size()));
  if (is_new) write();
  const std::uint32_t number = entry->second;
  const bool is_short = number <= std::numeric_limits<std::uint8_t>::max();
  bytes_ += is_new ? (is_short ? 'q' : 'r') : (is_short ? 'h' : 'j');  // put, get
  add_number(bytes_, number, is_short ? 1 : 4);
}

}  // namespace shardwright
