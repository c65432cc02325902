#pragma once

#include <cstdint>
#include <span>

#include "kernels/dtype.h"

namespace shardwright {

/// What random values are wanted of a dtype.
struct RandomValues {
  enum class Kind : std::uint8_t {
    any,
    codes,     ///< any bytes: two elements in each
    positive,  ///< scales of NVFP4: F8_E4M3 from 2^-9 to 448, F32 2^-10 everywhere
  };
  DType dtype;
  Kind kind = Kind::any;
};

/// Fills `into` with the bytes of a random tensor from `offset` on, which must be a multiple of 8. The same
/// key gives the same tensor, however it is cut.
///
/// F8_E4M3: every code but NaN. U8, taken for e8m0 scales: 15 of 16 are 100 to 140, that is 2^-27 to 2^13,
/// the rest anywhere in 0 to 254, so that products overflow BF16, become subnormal and vanish; never 255,
/// which is NaN. BF16 and F32: any finite number, subnormals included.
/// I64: 0 to 3, which number the experts of a small checkpoint. Other dtypes: Error (argument).
void fill_random(RandomValues values, std::uint64_t key, std::uint64_t offset, std::span<char> into);

}  // namespace shardwright
