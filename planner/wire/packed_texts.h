#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shardwright {

/// Texts of any bytes as one: each behind its length, 8 bytes in this machine's order.
std::string pack_texts(const std::vector<std::string>& texts);

/// The inverse. Throws Error(malformed) for bytes that are cut short.
std::vector<std::string> unpack_texts(std::string_view bytes);

}  // namespace shardwright
