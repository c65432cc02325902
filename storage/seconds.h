#pragma once

#include <chrono>

namespace shardwright {

using Clock = std::chrono::steady_clock;

inline double seconds_of(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

inline double seconds_since(Clock::time_point begin) { return seconds_of(Clock::now() - begin); }

}  // namespace shardwright
