#pragma once

#include <chrono>

namespace shardwright {

/// How soon a wait notices that it is not needed any more.
inline constexpr std::chrono::milliseconds nap{50};

}  // namespace shardwright
