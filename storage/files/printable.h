#pragma once

#include <span>
#include <string>
#include <string_view>

namespace shardwright {

/// Text that came from a file, made fit for an error message: control characters and bytes that are not UTF-8
/// become \xNN (Python refuses to raise an exception whose message is not UTF-8), and long text is cut.
/// Passwords and queries of addresses, which may be secret, become ***.
std::string printable(std::string_view text, std::size_t max_bytes = 300);

/// Printable text, in double quotes.
std::string in_quotes(std::string_view text);

/// The first 20 names, quoted, and how many more there are.
std::string listed(std::span<const std::string> names);

}  // namespace shardwright
