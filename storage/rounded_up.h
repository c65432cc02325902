#pragma once

namespace shardwright {

/// The least multiple of `unit` that is not less than `value`.
template <class Unsigned>
constexpr Unsigned rounded_up(Unsigned value, Unsigned unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace shardwright
