#include "storage/files/secrets.h"

namespace shardwright {
namespace {

constexpr std::string_view spaces = " \t\n";
constexpr std::string_view ends_of_addresses = " \t\n\"'>)";

bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

bool is_of_name(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '.' ||
         c == '%' || c == '-' || (c & 0x80) != 0;
}

/// Hides queries of paths without a server before them: libraries quote requests so, "url: /run?name=value".
std::string without_queries(std::string_view text) {
  std::string result;
  std::size_t at = 0;
  for (std::size_t mark = text.find('?'); mark != text.npos; mark = text.find('?', at)) {
    std::size_t end = mark + 1;
    while (end < text.size() && is_of_name(text[end])) ++end;
    const bool is_query =
        mark > 0 && !is_space(text[mark - 1]) && end > mark + 1 && end < text.size() && text[end] == '=';
    result.append(text.substr(at, mark + 1 - at));
    at = mark + 1;
    if (!is_query) continue;
    result += "***";
    while (end < text.size() && !is_space(text[end]) && ends_of_addresses.find(text[end]) == text.npos) ++end;
    at = end;
  }
  return result.append(text.substr(at));
}

/// The same without what addresses have that begin with a scheme.
std::string without_secrets_of_addresses(std::string_view text) {
  std::string result;
  for (;;) {
    const std::size_t scheme = text.find("://");
    if (scheme == std::string_view::npos) return result.append(text);
    const std::size_t begin = scheme + 3;
    const bool is_http =
        text.substr(0, scheme).ends_with("http") || text.substr(0, scheme).ends_with("https");
    result.append(text.substr(0, begin));
    text.remove_prefix(begin);
    std::string_view address =
        text.substr(0, text.find_first_of(spaces));  // a password may hold the other ends
    // In abfss://container@account the user is none. Keys of AWS hold slashes; digits before a slash are a
    // port.
    const std::string_view host = address.substr(0, address.find('/'));
    std::size_t user_end = host.rfind('@');
    const std::size_t colon = host.find(':');
    const bool is_port = colon != host.npos && host.find_first_not_of("0123456789", colon + 1) == host.npos;
    if (user_end == host.npos && colon != host.npos && !is_port) user_end = address.find('@');
    if (user_end != std::string_view::npos && (is_http || colon < user_end)) {
      result += "***@";
      address.remove_prefix(user_end + 1);
      text.remove_prefix(user_end + 1);
    }
    address = address.substr(0, address.find_first_of(ends_of_addresses));
    text.remove_prefix(address.size());
    const std::size_t query = address.find('?');
    result.append(address.substr(0, query));
    if (query != std::string_view::npos) result += "?***";
  }
}

}  // namespace

std::string without_secrets(std::string_view text) {
  return without_queries(without_secrets_of_addresses(text));
}

}  // namespace shardwright
