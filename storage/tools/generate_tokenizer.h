#pragma once

#include <map>
#include <string>
#include <string_view>

namespace shardwright {

/// What trainers want beside a generated checkpoint, by file name: tokenizer.json, tokenizer_config.json and
/// generation_config.json. A token is a byte, without merges. The marks (padding, beginning, end) have the
/// numbers that config.json says; unknown bytes, the printable bytes of ASCII and then the others take the
/// numbers that are left, in this order, as far as vocab_size reaches. Numbers beyond that stand for nothing.
std::map<std::string, std::string> beside_generated(const std::string& config);

/// Whether a file of this name is one of those.
bool is_beside_generated(std::string_view name);

}  // namespace shardwright
