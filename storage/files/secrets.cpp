#include "storage/files/secrets.h"

namespace shardwright {
namespace {

constexpr std::string_view spaces = " \t\n";
constexpr std::string_view ends_of_addresses = " \t\n\"'>)";

}  // namespace

std::string without_secrets(std::string_view text) {
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

}  // namespace shardwright
