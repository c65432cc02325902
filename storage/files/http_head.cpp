#include "storage/files/http_head.h"

#include <algorithm>
#include <charconv>
#include <set>
#include <system_error>

namespace shardwright {
namespace {

constexpr std::string_view line_end = "\r\n";
constexpr std::string_view blanks = " \t";

std::string lower_case(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return result;
}

std::string_view without_blanks(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(blanks);
  if (begin == text.npos) return {};
  return text.substr(begin, text.find_last_not_of(blanks) - begin + 1);
}

/// Digits alone, and no more than fit.
std::optional<std::uint64_t> number_of(std::string_view text) {
  std::uint64_t number = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (text.empty() || code != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

bool is_of_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
         std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}

bool is_of_value(char c) { return static_cast<unsigned char>(c) >= 0x20 ? c != 0x7f : c == '\t'; }

/// "HTTP/1.1 206 Partial Content"
bool read_status(std::string_view line, HttpHead& head) {
  if (!line.starts_with("HTTP/1.1 ") && !line.starts_with("HTTP/1.0 ")) return false;
  head.keeps_open = line[7] == '1';
  if (line.size() < 12 || (line.size() > 12 && line[12] != ' ')) return false;
  const std::optional<std::uint64_t> status = number_of(line.substr(9, 3));
  if (!status || *status < 100 || *status > 599) return false;
  head.status = static_cast<int>(*status);
  return true;
}

/// "bytes 0-99/1000": the last byte belongs to it. "bytes */1000", of a refusal, names no range.
bool read_range(std::string_view text, HttpHead& head) {
  if (!text.starts_with("bytes ")) return false;
  text = without_blanks(text.substr(6));
  const std::size_t slash = text.find('/');
  if (slash == text.npos) return false;
  const std::string_view total = text.substr(slash + 1);
  const std::optional<std::uint64_t> size = number_of(total);
  if (!size && total != "*") return false;
  text = text.substr(0, slash);
  if (text == "*") return true;
  const std::size_t dash = text.find('-');
  if (dash == text.npos) return false;
  const std::optional<std::uint64_t> first = number_of(text.substr(0, dash));
  const std::optional<std::uint64_t> last = number_of(text.substr(dash + 1));
  if (!first || !last || *last < *first || *last == UINT64_MAX || (size && *last >= *size)) return false;
  head.total = size;
  head.begin = *first;
  head.end = *last + 1;
  return true;
}

bool read_field(const std::string& name, std::string_view value, HttpHead& head) {
  if (name == "content-length") {
    head.length = number_of(value);
    return head.length.has_value();
  }
  if (name == "content-range") return read_range(value, head);
  if (name == "etag") {
    head.etag = value;
    return !value.empty();
  }
  if (name == "transfer-encoding" || (name == "content-encoding" && lower_case(value) != "identity")) {
    head.is_encoded = true;
  } else if (name == "connection" && lower_case(value) != "keep-alive") {
    head.keeps_open = false;
  }
  return true;
}

}  // namespace

std::size_t end_of_http_head(std::string_view bytes) {
  const std::size_t end = bytes.find("\r\n\r\n");
  return end == bytes.npos ? end : end + 4;
}

std::optional<HttpHead> read_http_head(std::string_view text) {
  HttpHead head;
  std::set<std::string> told;
  bool is_first = true;
  while (!text.empty()) {
    const std::size_t end = text.find(line_end);
    if (end == text.npos) return std::nullopt;
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + line_end.size());
    if (!std::all_of(line.begin(), line.end(), is_of_value)) return std::nullopt;
    if (is_first) {
      if (!read_status(line, head)) return std::nullopt;
      is_first = false;
      continue;
    }
    if (line.empty()) return text.empty() ? std::optional(head) : std::nullopt;
    const std::size_t colon = line.find(':');
    if (colon == line.npos || colon == 0) return std::nullopt;
    if (!std::all_of(line.begin(), line.begin() + static_cast<std::ptrdiff_t>(colon), is_of_name))
      return std::nullopt;
    const std::string name = lower_case(line.substr(0, colon));
    const bool can_be_said_once = name == "content-length" || name == "content-range" || name == "etag";
    if (can_be_said_once && !told.insert(name).second) return std::nullopt;
    if (!read_field(name, without_blanks(line.substr(colon + 1)), head)) return std::nullopt;
  }
  return std::nullopt;
}

}  // namespace shardwright
