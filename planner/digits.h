#pragma once

#include <algorithm>
#include <string_view>

namespace shardwright {

/// Whether a text is decimal digits alone, one or more, as the number of a layer or an expert in a name is.
inline bool is_digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
}

}  // namespace shardwright
