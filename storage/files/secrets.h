#pragma once

#include <string>
#include <string_view>

namespace shardwright {

/// The text with *** in place of what may be secret in the addresses in it: passwords, and queries, which
/// sign them.
std::string without_secrets(std::string_view text);

}  // namespace shardwright
