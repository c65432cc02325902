#pragma once

// What libFuzzer calls, over the functions of the target that includes this.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "planner/error.h"

namespace shardwright {

/// A target's inputs: the first byte says which of `kinds` decoders takes the others.
struct FuzzTarget {
  int kinds;
  void (*take)(char kind, std::string_view bytes);  ///< may throw Error: a refusal is as good as a result
  void (*write_seeds)(const std::filesystem::path& folder);
};

/// Defined by the target.
extern const FuzzTarget fuzz_target;

}  // namespace shardwright

/// With --seeds=DIR writes a corpus to begin with, and ends.
extern "C" int LLVMFuzzerInitialize(int* count, char*** arguments) {
  constexpr std::string_view seeds = "--seeds=";
  for (int i = 1; i < *count; ++i) {
    const std::string_view argument = (*arguments)[i];
    if (!argument.starts_with(seeds)) continue;
    shardwright::fuzz_target.write_seeds(argument.substr(seeds.size()));
    std::exit(0);
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto kind = static_cast<char>(data[0] % shardwright::fuzz_target.kinds);
  try {
    shardwright::fuzz_target.take(kind, {reinterpret_cast<const char*>(data) + 1, size - 1});
  } catch (const shardwright::Error&) {
  }
  return 0;
}
