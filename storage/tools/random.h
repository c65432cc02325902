#pragma once

#include <cstdint>
#include <string_view>

namespace shardwright {

/// Random numbers by position: word i of a stream depends on its key and i alone, so that any thread can
/// begin anywhere. This is SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators",
/// OOPSLA 2014, with variant 13 of Stafford's mixing constants), whose state after i steps is key + i *
/// gamma, and whose output is a mix of the state.
constexpr std::uint64_t random_mix(std::uint64_t state) {
  state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9u;
  state = (state ^ (state >> 27)) * 0x94D049BB133111EBu;
  return state ^ (state >> 31);
}

constexpr std::uint64_t random_word(std::uint64_t key, std::uint64_t i) {
  constexpr std::uint64_t gamma = 0x9E3779B97F4A7C15u;  // 2^64 / golden ratio, odd
  return random_mix(key + (i + 1) * gamma);
}

/// The key of the stream that belongs to a name: FNV-1a of the name, mixed with the seed.
constexpr std::uint64_t random_key(std::uint64_t seed, std::string_view name) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const char character : name) hash = (hash ^ static_cast<std::uint8_t>(character)) * 0x100000001B3u;
  return random_mix(hash ^ random_mix(seed));
}

}  // namespace shardwright
